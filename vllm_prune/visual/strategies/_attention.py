"""The tower's attention, for strategies that cannot do without it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ...grid import Grid
from ._signals import required
from .base import Context, NoOptions


class AttentionOptions(NoOptions):
    """Options of a strategy that looks at the tower's attention; only blocks that attend to whole frames are counted.

    Attributes:
        tower_blocks: blocks of the tower whose attention is averaged, counted from the last one; null for all.
        skip_blocks: how many of the last blocks are left out before counting.
    """

    tower_blocks: Annotated[int, Field(ge=1, le=128)] | None = 1
    skip_blocks: Annotated[int, Field(ge=0, le=127)] = 0


def received(strategy: str, tokens: Tensor, grid: Grid, context: Context) -> Tensor:
    """Attention that each cell receives in late layers of the tower, float32 [M]; 1 is a frame's average.

    Args:
        strategy: its name, for the error.
        tokens: of the item; they say on which device.
        grid: of the item.
        context: see `Context`.

    Raises:
        ValueError: the model adapter did not capture the attention.
    """
    attention = required(strategy, "tower_attention", context.tower_attention)
    if len(attention) != grid.tokens:
        raise ValueError(f"tower_attention has {len(attention)} values for {grid.tokens} cells")
    # A frame's values sum to one.
    return attention.float().to(tokens.device) * grid.per_frame
