"""A subset in which no two cells are alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...grid import Grid
from .base import Context, Strategy, TowerOptions, best, best_per_frame
from .maths import banded, diverse_order, diversity, farthest_points, highest, sketch

# One CPU thread compares 2,048 cells in segments of this size in the time of their projection.
_SEGMENT = 256
# How many times its even share a segment may take from the others.
_STRETCH = 2
# K is small up to one in so many cells.
_FEW = 5
# Comparisons that a whole item may take: 2 G multiplications, some 50 ms of one CPU thread.
_PAIRS = 1 << 24


class DivPrune(Strategy):
    """DivPrune (arXiv 2503.02175): the subset whose smallest distance, one minus cosine, is largest.

    The paper solves this greedily over all M cells, which takes K steps one after the other. Here it is solved on a
    128-wide sketch of the cells, in one of two ways:

    - Small K (at most a fifth of M) over the whole item, as in the paper: the first 32 picks one after the other, all
      others in 32 blocks (`maths.diverse_order`); on a GPU all of them one after the other in one launch, up to 8,192
      cells. The first is the cell farthest from the mean; the authors' is the one whose nearest neighbour is farthest,
      which takes M * M comparisons to find. These are M * K, and where those are too many this way is left.
    - Else every frame, and every band of at most 256 cells of a larger frame, at the same time. A segment's picks come
      at shrinking distances; the K picks at the largest distances of all segments are kept, so a varied segment gets
      more than a plain one, up to twice its even share. This keeps what repeats from frame to frame once in each,
      which costs little of a large K and most of a small one.

    Up to 256 cells in one frame this is the paper's greedy solution, but for the sketch.
    """

    name = "divprune"
    paper = "DivPrune, arXiv 2503.02175"
    summary = "visual tokens that are far from each other (max-min diversity)"
    Options = TowerOptions

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`."""
        bands = _bands(grid)
        if grid.frames * bands > 1 and count * _FEW <= grid.tokens and count * grid.tokens <= _PAIRS:
            return _over_all(sketch(tokens), grid, count)
        return best(_gains(tokens, grid, bands, _steps(count, grid.frames * bands)), count, grid.frames)

    def select_frames(self, tokens: Tensor, grid: Grid, per_frame: Sequence[int], context: Context) -> Tensor:
        """See `Strategy.select_frames`."""
        bands = _bands(grid)
        return best_per_frame(_gains(tokens, grid, bands, _steps(max(per_frame), bands)), per_frame)


def _over_all(units: Tensor, grid: Grid, count: int) -> Tensor:
    """The first `count` picks over the whole item, one of each frame among them where they suffice; int64 [count]."""
    first = highest(-(units @ units.mean(0)), 1)
    if diversity.launches_once(units, grid.tokens):
        return best(farthest_points(units[None], count, first=first)[0], count, grid.frames)
    order = diverse_order(units, count, lambda _, similar: 1 - similar, first)
    ranks = units.new_zeros(grid.tokens)
    ranks[order] = torch.arange(count, 0, -1, dtype=ranks.dtype, device=ranks.device)
    return best(ranks, count, grid.frames)


def _bands(grid: Grid) -> int:
    return -(-grid.per_frame // _SEGMENT)


def _steps(count: int, segments: int) -> int:
    """Picks per segment that let `segments` segments share `count`."""
    return count if segments == 1 else _STRETCH * -(-count // segments)


def _gains(tokens: Tensor, grid: Grid, bands: int, steps: int) -> Tensor:
    """Distance at which each cell was picked, float32 [M], -inf where it was not."""
    segments, valid = banded(sketch(tokens), grid, bands)
    gains = farthest_points(segments, min(steps, segments.shape[1]), valid)
    return gains.view(grid.frames, -1)[:, : grid.per_frame].flatten()
