"""The tower's attention, for strategies that cannot do without it."""

from __future__ import annotations

from torch import Tensor

from ...grid import Grid
from .base import Context


def received(strategy: str, tokens: Tensor, grid: Grid, context: Context) -> Tensor:
    """Attention that each cell receives in a late layer of the tower, float32 [M]; 1 is a frame's average.

    Args:
        strategy: its name, for the error.
        tokens: of the item; they say on which device.
        grid: of the item.
        context: see `Context`.

    Raises:
        ValueError: the model adapter did not capture the attention.
    """
    attention = context.tower_attention
    if attention is None:
        raise ValueError(f"strategy {strategy!r} needs the signal 'tower_attention', which was not captured")
    if len(attention) != grid.tokens:
        raise ValueError(f"tower_attention has {len(attention)} values for {grid.tokens} cells")
    # A frame's values sum to one.
    return attention.float().to(tokens.device) * grid.per_frame
