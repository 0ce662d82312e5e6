"""Names of the signals that strategies can need; the one place where a signal is named.

What provides a signal on a worker is in `visual/tower/signals.py` and `kv/signals.py`, where it is not to be had in
`support/signals.py`. The tables there have exactly these keys.
"""

from __future__ import annotations

from typing import Literal

VisualSignal = Literal[
    "tower_attention", "pixels", "scorer", "selector", "projector", "any_size", "text", "unpooled", "weights"
]
FRONT_END: frozenset[VisualSignal] = frozenset({"pixels", "any_size"})
"""What only the front end has: strategies that need it are done before the vision tower runs."""
KvSignal = Literal["queries", "saliency", "values", "rotation", "coordinates", "moments", "gates"]
