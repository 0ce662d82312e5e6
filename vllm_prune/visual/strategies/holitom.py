"""What stands still once per window of frames, and of all that the attended."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...grid import Grid
from ._attention import received
from ._merging import MergingStrategy
from .base import Context, NoOptions, Reduction
from .maths import absorb, cosine, highest, mean_by, nearest, sketch


class HoliTomOptions(NoOptions):
    """Options of `holitom`; the defaults are the authors'.

    Attributes:
        alike: cosine from which a visual token counts as unchanged between two frames.
        least: smallest weight that a kept token has when others are merged into it.
    """

    alike: Annotated[float, Field(ge=-1, le=1)] = 0.8
    least: Annotated[float, Field(ge=0, le=1)] = 0.6


class HoliTom(MergingStrategy):
    """The outer part of HoliTom (arXiv 2505.21334), with an exact count.

    The video is cut into the windows of frames that save most: as many tokens as cells stay alike through a window, for
    each frame of it but the first. A cell that stays alike through its window is one candidate, the mean of its tokens;
    every other token is one. The K candidates that receive most attention are kept (the authors' share for attention
    alone, which is their default), the others are merged into the most similar kept one of their window. Where there
    are fewer than K candidates, the repeats that are least like the frame before stay as they are. What HoliTom does
    inside the language model is no part of this.
    """

    name = "holitom"
    paper = "HoliTom, arXiv 2505.21334, its outer part, with an exact count"
    summary = "what stands still once per window of frames; of all that, what receives most attention (merges)"
    modalities = frozenset({"video"})
    needs = frozenset({"tower_attention"})
    floor = False
    Options = HoliTomOptions
    options: HoliTomOptions

    def reduce_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Reduction:
        """See `MergingStrategy.reduce_span`."""
        attention, units = received(self.name, tokens, grid, context), sketch(tokens)
        frames = units.view(grid.frames, grid.per_frame, -1)
        similar = cosine(frames[1:], frames[:-1])
        windows = best_windows(similar >= self.options.alike)
        candidate = _candidates(similar >= self.options.alike, grid, windows)
        repeats = candidate != torch.arange(grid.tokens, device=tokens.device)
        missing = count - int((~repeats).sum())
        if missing > 0:
            change = torch.cat([similar.new_full((grid.per_frame,), -2.0), -similar.flatten()])
            split = highest(change.masked_fill(~repeats, -4.0), missing)
            candidate = candidate.index_copy(0, split, split)
        starts, owner = candidate.unique(return_inverse=True)
        means = mean_by(units, owner, len(starts))
        order = highest(mean_by(attention[:, None], owner, len(starts)).squeeze(1), count)
        absorbs = _absorbs(means, order, starts // grid.per_frame, windows)
        kept = starts[order]
        return Reduction(
            kept, lambda rows: absorb(mean_by(rows, owner, len(starts)), order, absorbs, self.options.least)
        )


def best_windows(static: Tensor) -> list[range]:
    """Cut frames into the windows that save most tokens, by dynamic programming; earlier cuts at equal savings.

    Args:
        static: bool [T - 1, P], whether a cell is alike in a frame and the next.

    Returns:
        The frames of each window. Reads the device.
    """
    count = len(static) + 1
    # savings[i][n]: tokens saved by the window of frames i to i + n.
    savings = [
        (static[i:].long().cumprod(0).sum(1) * torch.arange(1, count - i, device=static.device)).tolist()
        for i in range(count - 1)
    ] + [[]]
    best = [0] * (count + 1)
    start = list(range(-1, count))
    for end in range(1, count + 1):
        choices = [best[i] + ([0, *savings[i]])[end - 1 - i] for i in range(end)]
        best[end] = max(choices)
        start[end] = choices.index(best[end])
    windows, end = [], count
    while end:
        windows.append(range(start[end], end))
        end = start[end]
    return windows[::-1]


def _candidates(static: Tensor, grid: Grid, windows: list[range]) -> Tensor:
    """The token that stands for each one, int64 [M]: that of the window's first frame where the cell stays alike."""
    candidate = torch.arange(grid.tokens, device=static.device).view(grid.frames, grid.per_frame)
    for window in windows:
        still = static[window.start : window.stop - 1].all(0)
        candidate[window.start : window.stop] = torch.where(
            still, candidate[window.start], candidate[window.start : window.stop]
        )
    return candidate.flatten()


def _absorbs(means: Tensor, order: Tensor, frame: Tensor, windows: list[range]) -> Tensor:
    """The place in `order` of the kept candidate that each of the others is merged into, K where there is none."""
    count = len(order)
    owner = torch.full((len(means),), count, device=means.device)
    kept = torch.zeros(len(means), dtype=torch.bool, device=means.device).index_fill(0, order, True)
    for window in windows:
        inside = (frame >= window.start) & (frame < window.stop)
        others = (inside & ~kept).nonzero().squeeze(1)
        places = (inside[order]).nonzero().squeeze(1)
        if len(others) and len(places):
            owner[others] = places[nearest(means[others], means[order[places]])]
    return owner
