"""What stands still once per window of frames, and of all that the attended."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...grid import Grid
from ._attention import AttentionOptions, received
from ._merging import MergingStrategy
from .base import Context, Reduction, to_device
from .maths import absorb, cosine, highest, mean_by, quantise, sketch, unit_rows

# Candidates that are compared with all kept ones at once.
_ROWS = 1024


class HoliTomOptions(AttentionOptions):
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

    def waits_for_device(self) -> bool:
        """See `Strategy.waits_for_device`: windows of frames come from features."""
        return True

    def reduce_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Reduction:
        """See `MergingStrategy.reduce_span`."""
        attention, units = received(self.name, tokens, grid, context), sketch(tokens)
        frames = units.view(grid.frames, grid.per_frame, -1)
        similar = cosine(frames[1:], frames[:-1])
        windows = best_windows(similar >= self.options.alike)
        starts = owner = torch.arange(grid.tokens, device=tokens.device)
        if grid.frames > 1:
            starts, owner = _candidates(similar, self.options.alike, grid, windows, count)
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


def _candidates(similar: Tensor, alike: float, grid: Grid, windows: list[range], count: int) -> tuple[Tensor, Tensor]:
    """The tokens that stand for all, `count` or more, and the place among them of the one that stands for each token.

    What stays alike through its window is stood for by the token of the window's first frame, as far as enough tokens
    are left; the rest of the repeats, those that change most, stand for themselves.
    """
    every = torch.arange(grid.tokens, device=similar.device)
    candidate = every.view(grid.frames, grid.per_frame).clone()
    for window in windows:
        still = (similar[window.start : window.stop - 1] >= alike).all(0)
        inside = candidate[window.start : window.stop]
        candidate[window.start : window.stop] = torch.where(still, inside[:1], inside)
    candidate = candidate.flatten()
    repeats = candidate != every
    missing = count - int((~repeats).sum())
    if missing > 0:
        change = torch.cat([similar.new_full((grid.per_frame,), -2.0), -similar.flatten()])
        split = highest(change.masked_fill(~repeats, -4.0), missing)
        candidate = candidate.index_copy(0, split, split)
    starts, owner = candidate.unique(return_inverse=True)
    return starts, owner


def _absorbs(means: Tensor, order: Tensor, frame: Tensor, windows: list[range]) -> Tensor:
    """The place in `order` of the kept candidate that each of the others is merged into, K where there is none."""
    count, units = len(order), unit_rows(means)
    window_of = to_device(torch.tensor([w for w, window in enumerate(windows) for _ in window]), frame.device)
    window = window_of[frame]
    parts = []
    for part, part_window in zip(units.split(_ROWS), window.split(_ROWS), strict=True):
        apart = part_window[:, None] != window[order][None]
        best = quantise(part @ units[order].T).masked_fill(apart, -2.0).argmax(1)
        parts.append(torch.where(apart.all(1), count, best))
    return torch.cat(parts).index_fill(0, order, count)
