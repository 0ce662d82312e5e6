"""The base class of strategies that merge dropped cells into kept ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...grid import Grid
from .base import Context, Reduction, Strategy, check_counts, frame_context


class MergingStrategy(Strategy):
    """A strategy that merges dropped cells into kept ones; subclasses override `reduce_span`.

    Where the counts per frame are fixed, merging stays inside each frame.
    """

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
        frame, spans = Grid(1, grid.rows, grid.cols), list[tuple[int, Reduction]]()
        for t, (n, part) in enumerate(zip(per_frame, tokens.split(grid.per_frame), strict=True)):
            if n:
                spans.append((t, self.reduce(part, frame, n, frame_context(context, t, grid))))
        return _joined(spans, grid.per_frame)

    def select(
        self, tokens: Tensor, grid: Grid, count: int, context: Context, per_frame: Sequence[int] | None = None
    ) -> Tensor:
        """The cells that others are merged into; see `Strategy.select`."""
        return self.reduce(tokens, grid, count, context, per_frame).kept


def _sorted(reduction: Reduction) -> Reduction:
    kept, order = reduction.kept.sort()
    merge = reduction.merge
    return Reduction(kept, None if merge is None else lambda rows: merge(rows)[order])


def _joined(spans: Sequence[tuple[int, Reduction]], per_frame: int) -> Reduction:
    def merge(rows: Tensor) -> Tensor:
        frames = rows.split(per_frame)
        return torch.cat([span.rows(frames[t]).float() for t, span in spans])

    return Reduction(torch.cat([span.kept + t * per_frame for t, span in spans]), merge)
