"""What stands still once per window of frames, and of all that the attended."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...grid import Grid
from ...shares import largest_remainder
from ._attention import AttentionOptions, received
from ._merging import MergingOptions, MergingStrategy
from .base import Context, Reduction, best_per_frame, places_of
from .maths import (
    absorb,
    compared,
    count_by,
    density_peaks,
    heaviest,
    highest,
    mean_by,
    nearest,
    owner_weights,
    unit_rows,
)

_NEIGHBOURS = 7


class HoliTomOptions(MergingOptions, AttentionOptions):
    """Options of `holitom`, beside those of merging; the defaults are the authors'.

    Attributes:
        alike: cosine above which a visual token counts as unchanged between two frames.
        least: smallest weight that a kept token has when others are merged into it.
    """

    alike: Annotated[float, Field(ge=-1, le=1)] = 0.8
    least: Annotated[float, Field(ge=0, le=1)] = 0.6


class HoliTom(MergingStrategy):
    """The outer part of HoliTom (arXiv 2505.21334), with an exact count.

    The video is cut into the windows of frames that save most: as many tokens as cells stay alike through a window, for
    each frame of it but the first. A cell that stays alike through its window is one candidate, the mean of its tokens;
    every other token is one. K is shared in proportion by the windows' still cells and by the changing ones of each
    frame. Of still cells density peaks (DPC-kNN, 7 neighbours) are kept, and the others merged into the nearest of
    them; of changing ones what receives most attention, which is the authors' default, and the others are dropped.

    The authors round every share, here they make K exact. Where there are fewer than K candidates, the repeats that are
    least like the frame before stay as they are. What HoliTom does inside the language model is no part of this.
    """

    name = "holitom"
    paper = "HoliTom, arXiv 2505.21334, its outer part, with an exact count"
    summary = "what stands still once per window of frames, with its like merged in, and the attended of the rest"
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
        attention = received(self.name, tokens, grid, context)
        if grid.frames == 1:
            # Nothing stands still in one frame, so that the device need not be waited for.
            return Reduction(best_per_frame(attention, [count]))
        rows = compared(tokens, grid.per_frame) / math.sqrt(tokens.shape[1])
        frames = unit_rows(rows).view(grid.frames, grid.per_frame, -1)
        similar = (frames[1:] * frames[:-1]).sum(-1)
        windows = best_windows(similar > self.options.alike)
        still = _still(similar > self.options.alike, grid, windows)
        starts, owner = _candidates(similar, still, grid, windows, count)
        means = mean_by(rows, owner, len(starts))
        if len(starts) == count:
            order, absorbs = torch.arange(count, device=tokens.device), torch.full_like(starts, count)
        else:
            order, absorbs = _chosen(means, owner.view(grid.frames, -1), attention, still, windows, count)
        return Reduction(
            starts[order],
            lambda every: absorb(mean_by(every, owner, len(starts)), order, absorbs, self.options.least),
            lambda parts: _members(owner, order, absorbs, self.options.least, parts),
        )


def best_windows(static: Tensor) -> list[range]:
    """Cut frames into the windows that save most tokens, by dynamic programming; shorter ones at equal savings.

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
        best[end], start[end] = max((saved, i) for i, saved in enumerate(choices))
    windows, end = [], count
    while end:
        windows.append(range(start[end], end))
        end = start[end]
    return windows[::-1]


def _still(static: Tensor, grid: Grid, windows: list[range]) -> Tensor:
    """Whether a token's cell stays alike through its window of two frames or more, bool [T, P]."""
    still = torch.zeros(grid.frames, grid.per_frame, dtype=torch.bool, device=static.device)
    for window in windows:
        if len(window) > 1:
            still[window.start : window.stop] = static[window.start : window.stop - 1].all(0)
    return still


def _candidates(similar: Tensor, still: Tensor, grid: Grid, windows: list[range], count: int) -> tuple[Tensor, Tensor]:
    """The tokens that stand for all, `count` or more, and the place among them of the one that stands for each token.

    What stays alike through its window is stood for by the token of the window's first frame, as far as enough tokens
    are left; the rest of the repeats, those that change most, stand for themselves.
    """
    every = torch.arange(grid.tokens, device=similar.device)
    candidate = every.view(grid.frames, grid.per_frame).clone()
    for window in windows:
        inside = slice(window.start, window.stop)
        candidate[inside] = torch.where(still[inside], candidate[window.start], candidate[inside])
    candidate = candidate.flatten()
    repeats = candidate != every
    missing = count - int((~repeats).sum())
    if missing > 0:
        change = torch.cat([similar.new_full((grid.per_frame,), -2.0), -similar.flatten()])
        split = highest(change.masked_fill(~repeats, -4.0), missing)
        candidate = candidate.index_copy(0, split, split)
    starts, owner = candidate.unique(return_inverse=True)
    return starts, owner


def _chosen(
    means: Tensor, owner: Tensor, attention: Tensor, still: Tensor, windows: list[range], count: int
) -> tuple[Tensor, Tensor]:
    """Kept candidates, and the place among them that each of the others is merged into, `count` where there is none.

    Args:
        means: float32 [n, d], of the candidates.
        owner: int64 [T, P], candidate of each token.
        attention: float32 [M].
        still: bool [T, P].
        windows: of frames.
        count: candidates to keep, less than n.
    """
    firsts = [window.start for window in windows]
    of_windows = [int(n) for n in still[firsts].sum(1).tolist()]
    of_frames = [int(n) for n in (~still).sum(1).tolist()]
    sizes = [n if len(window) > 1 else 0 for n, window in zip(of_windows, windows, strict=True)] + of_frames
    shares = largest_remainder(count, sizes, sizes, 0)
    absorbs = torch.full((len(means),), count, device=means.device)
    kept, before = [], 0
    for first, share, size in zip(firsts, shares, sizes, strict=False):
        if share:
            candidates = owner[first, places_of(still[first], size)]
            centers = density_peaks(means[candidates], share, min(_NEIGHBOURS, share))
            absorbs[candidates] = nearest(means[candidates], means[candidates[centers]]) + before
            kept.append(candidates[centers])
            before += share
    seen = best_per_frame(attention.masked_fill(still.flatten(), -1.0), shares[len(windows) :])
    order = torch.cat([*kept, owner.flatten()[seen]])
    return order, absorbs.index_fill_(0, order, count)


def _members(owner: Tensor, order: Tensor, absorbs: Tensor, least: float, parts: int) -> Tensor:
    """The tokens that weigh most in each kept candidate, int64 [K, parts], the earlier first where they weigh the same.

    Args:
        owner: int64 [M], candidate of each token.
        order, absorbs: see `_chosen`.
        least: see `absorb`.
        parts: tokens of each.
    """
    count = len(order)
    absorbed = count_by(absorbs, count + 1)[:count]
    owners = owner_weights(absorbed, least)
    # Candidates that nobody absorbs weigh nothing, in a place of their own.
    weights = torch.cat([(1 - owners) / absorbed.clamp_min(1), owners.new_zeros(1)])[absorbs].index_copy(
        0, order, owners
    )
    into = absorbs.index_copy(0, order, torch.arange(count, device=order.device))
    return heaviest(into[owner], count, parts, (weights / count_by(owner, len(absorbs)))[owner])
