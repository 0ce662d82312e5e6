"""A video before the model pools its frames, for strategies that look at every patch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Context


@dataclass(frozen=True)
class Frames:
    """Frames of a video as the model's projector makes them, before neighbours are pooled to visual tokens.

    Attributes:
        rows: [T, P, D], P patches of each frame in raster order.
        pooled: visual tokens that a frame becomes.
    """

    rows: Tensor
    pooled: int


def frames_of(strategy: str, context: Context) -> Frames:
    """The frames of a video.

    Args:
        strategy: its name, for the error.
        context: see `Context`.

    Raises:
        ValueError: the model adapter did not give them.
    """
    if context.unpooled is None:
        raise ValueError(f"strategy {strategy!r} needs the signal 'unpooled', which was not captured")
    frames: Frames = context.unpooled
    return frames
