"""A subset in which no two cells are alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...grid import Grid
from .base import Context, Strategy, TowerOptions, best, best_per_frame
from .maths import farthest_points, sketch

# One CPU thread compares 2,048 cells in segments of this size in the time of their projection.
_SEGMENT = 256
# How many times its even share a segment may take from the others.
_STRETCH = 2


class DivPrune(Strategy):
    """DivPrune (arXiv 2503.02175): the subset whose smallest distance, one minus cosine, is largest.

    The paper solves this greedily over all M cells, which takes K steps one after the other. Here every
    frame, and every band of at most 256 cells of a larger frame, is solved at the same time on a
    128-wide sketch of the cells. A segment's picks come at shrinking distances; the K picks at the largest
    distances of all segments are kept, so a varied segment gets more than a plain one, up to twice its even
    share. Up to 256 cells in one frame this is the paper's greedy solution, but for the sketch.
    """

    name = "divprune"
    paper = "DivPrune, arXiv 2503.02175"
    summary = "visual tokens that are far from each other (max-min diversity), solved per frame or band"
    Options = TowerOptions

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`."""
        bands = _bands(grid)
        return best(_gains(tokens, grid, bands, _steps(count, grid.frames * bands)), count, grid.frames)

    def select_frames(self, tokens: Tensor, grid: Grid, per_frame: Sequence[int], context: Context) -> Tensor:
        """See `Strategy.select_frames`."""
        bands = _bands(grid)
        return best_per_frame(_gains(tokens, grid, bands, _steps(max(per_frame), bands)), per_frame)


def _bands(grid: Grid) -> int:
    return -(-grid.per_frame // _SEGMENT)


def _steps(count: int, segments: int) -> int:
    """Picks per segment that let `segments` segments share `count`."""
    return count if segments == 1 else _STRETCH * -(-count // segments)


def _gains(tokens: Tensor, grid: Grid, bands: int, steps: int) -> Tensor:
    """Distance at which each cell was picked, float32 [M], -inf where it was not."""
    width = -(-grid.per_frame // bands)
    padding = bands * width - grid.per_frame
    cells = sketch(tokens).view(grid.frames, grid.per_frame, -1)
    valid = None
    if padding:
        cells = torch.nn.functional.pad(cells, (0, 0, 0, padding))
        valid = torch.arange(bands * width, device=tokens.device) < grid.per_frame
        valid = valid.view(bands, width).repeat(grid.frames, 1)
    gains = farthest_points(cells.reshape(grid.frames * bands, width, -1), min(steps, width), valid)
    return gains.view(grid.frames, -1)[:, : grid.per_frame].flatten()
