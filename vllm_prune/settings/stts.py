"""The section `stts`: the trained scorer of strategy `stts`."""

from __future__ import annotations

from . import Section


class Stts(Section):
    """Where the scorer is.

    Attributes:
        scorer: a safetensors file, relative to the working directory; by default `stts/scorer.safetensors` beside the
            served checkpoint.
    """

    scorer: str | None = None
