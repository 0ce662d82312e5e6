"""A video before the model pools its frames, for strategies that look at every patch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Frames:
    """Frames of a video as the model's projector makes them, before neighbours are pooled to visual tokens.

    Attributes:
        rows: [T, P, D], P patches of each frame in raster order.
        pooled: visual tokens that a frame becomes.
    """

    rows: Tensor
    pooled: int
