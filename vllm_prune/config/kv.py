"""Section `kv`: what KV eviction may take of the workers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .section import Section


class Kv(Section):
    """What KV eviction may take of the workers.

    Attributes:
        observed_requests: requests whose last queries the workers keep at once, for the strategies that look at them
            (1.6 MB each at the default window and the shapes of a 7B model); absent, all that can run at once.
        over_observed: what becomes of one more: "wait" keeps it in the engine's queue until another has ended,
            "refuse" answers it with 503. "refuse" counts in each API process.
    """

    observed_requests: Annotated[int, Field(strict=True, ge=1)] | None = None
    over_observed: Literal["wait", "refuse"] = "wait"
