"""The base class of strategies that merge dropped cells into kept ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ...grid import Grid
from .base import Context, NoOptions, Reduction, Strategy, check_counts, frame_context
from .maths import heaviest, mean_by, quantise


class MergingOptions(NoOptions):
    """Options of every strategy that merges.

    Attributes:
        positions: how many members' positions a merged visual token carries, each for a part of every axis' rotary
            frequencies (PPE, with 8); with 1 that of the one that the others are merged into.
    """

    positions: Annotated[int, Field(ge=1, le=16)] = 1


class MergingStrategy(Strategy):
    """A strategy that merges dropped cells into kept ones; subclasses override `reduce_span`.

    Where the counts per frame are fixed, merging stays inside each frame.
    """

    Options: ClassVar[type[BaseModel]] = MergingOptions

    def reduce_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Reduction:
        """Reduce a whole item, or one of its frames, to `count` < M cells, in any order; see `Strategy.select`."""
        raise NotImplementedError

    def reduce(
        self, tokens: Tensor, grid: Grid, count: int, context: Context, per_frame: Sequence[int] | None = None
    ) -> Reduction:
        """See `Strategy.reduce`."""
        check_counts(len(tokens), grid, count, per_frame)
        if count == grid.tokens:
            return Reduction(torch.arange(count, device=tokens.device))
        if per_frame is None:
            return _sorted(self.reduce_span(tokens, grid, count, context))
        frame, spans = Grid(1, grid.rows, grid.cols), list[tuple[slice, Reduction]]()
        for t, n in enumerate(per_frame):
            if n:
                inside = slice(t * grid.per_frame, (t + 1) * grid.per_frame)
                spans.append((inside, self.reduce(tokens[inside], frame, n, frame_context(context, t, grid))))
        return joined(spans)

    def select(
        self, tokens: Tensor, grid: Grid, count: int, context: Context, per_frame: Sequence[int] | None = None
    ) -> Tensor:
        """The cells that others are merged into; see `Strategy.select`."""
        return self.reduce(tokens, grid, count, context, per_frame).kept


def group_means(units: Tensor, kept: Tensor, owner: Tensor) -> Reduction:
    """Groups that become the mean of their members, those most like the mean of `units` first among them.

    Args:
        units: unit rows of all cells, float32 [M, d].
        kept: int64 [K], the cell that each group's mean takes the place of.
        owner: int64 [M], group of each cell; none is empty.
    """
    count = len(kept)
    return Reduction(
        kept,
        lambda rows: mean_by(rows, owner, count),
        lambda parts: heaviest(owner, count, parts, likeness(units, owner, count)),
    )


def likeness(units: Tensor, owner: Tensor, count: int) -> Tensor:
    """Product of each unit row with the mean of its group, float32 [M]; see `group_means`."""
    return quantise((units * mean_by(units, owner, count)[owner]).sum(1))


def _sorted(reduction: Reduction) -> Reduction:
    kept, order = reduction.kept.sort()
    merge, members = reduction.merge, reduction.members
    return Reduction(
        kept,
        None if merge is None else lambda rows: merge(rows)[order],
        None if members is None else lambda parts: members(parts)[order],
    )


def joined(spans: Sequence[tuple[slice, Reduction]]) -> Reduction:
    """One reduction from those of spans of an item, in their order."""

    def merge(rows: Tensor) -> Tensor:
        return torch.cat([reduction.rows(rows[inside]).float() for inside, reduction in spans])

    def members(count: int) -> Tensor:
        return torch.cat([reduction.members_of(count) + inside.start for inside, reduction in spans])

    return Reduction(torch.cat([reduction.kept + inside.start for inside, reduction in spans]), merge, members)
