"""Neighbouring frames merged pair by pair."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...grid import Grid
from ...shares import largest_remainder
from ._merging import MergingStrategy, group_means
from .base import Context, Reduction, places_of
from .maths import highest, mean_by, quantise, sketch, unit_rows

Clips = Sequence[Sequence[Tensor]]


class TempMe(MergingStrategy):
    """TempMe's progressive merging (arXiv 2409.01156) behind the tower, without its training.

    First tokens merge inside each frame, then inside each pair of neighbouring frames, each pair of pairs, and so on
    until the whole video is one clip. Every stage leaves the same share of what the one before left. A merge joins
    the most similar pairs between two halves of a clip, the later token into the earlier one (inside a frame: every
    second token into one of the others), as ToMe does; a merged token is the mean of all its members.
    """

    name = "tempme"
    paper = "after TempMe, arXiv 2409.01156; untrained"
    summary = "alike visual tokens merged inside frames, then over pairs of frames, pairs of pairs and so on (merges)"
    floor = False

    def reduce_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Reduction:
        """See `MergingStrategy.reduce_span`."""
        units, every = sketch(tokens), torch.arange(grid.tokens, device=tokens.device)
        owner, clips = every, [[frame] for frame in every.split(grid.per_frame)]
        for target in _targets(grid, count):
            owner, whole = _stage(units, owner, clips, target)
            clips = [whole[i : i + 2] for i in range(0, len(whole), 2)]
        ((kept,),) = clips
        place = torch.empty_like(every).index_copy_(0, kept, torch.arange(count, device=kept.device))[owner]
        return group_means(units, kept, place)


def _targets(grid: Grid, count: int) -> list[int]:
    """Tokens behind each stage: an equal share of those in front of it, `count` behind the last."""
    stages = 1 + (grid.frames - 1).bit_length()
    even = [round(grid.tokens * (count / grid.tokens) ** ((stage + 1) / stages)) for stage in range(stages - 1)]
    return [*(max(count, target) for target in even), count]


def _stage(units: Tensor, owner: Tensor, clips: Clips, target: int) -> tuple[Tensor, list[Tensor]]:
    """Merge inside clips until `target` tokens are left in all, or one in each.

    Args:
        units: unit rows of all tokens.
        owner: int64 [M], the token that each one is part of.
        clips: tokens that are left of each clip, in its two halves or as one.
        target: at least 1.

    Returns:
        The new `owner`, and what is left of each clip. How many are left is known without the device.
    """
    every = torch.arange(len(units), device=units.device)
    while (total := sum(len(half) for clip in clips for half in clip)) > max(target, len(clips)):
        means = unit_rows(mean_by(units, owner, len(units)))
        halves = [_halves(clip) for clip in clips]
        caps, sizes = [len(later) for _, later in halves], [len(sooner) + len(later) for sooner, later in halves]
        shares = largest_remainder(min(total - target, sum(caps)), sizes, caps, 0)
        merged = [_merged(means, *pair, share) for pair, share in zip(halves, shares, strict=True)]
        clips = [[left] for left, _, _ in merged]
        merged_away, into = (torch.cat([one[i] for one in merged]) for i in (1, 2))
        owner = every.index_copy(0, merged_away, into)[owner]
    return owner, [torch.cat(list(clip)) for clip in clips]


def _halves(clip: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens that others merge into, and those that merge: the halves of a clip, or every second token of a whole."""
    if len(clip) == 2:
        return clip[0], clip[1]
    return clip[0][::2], clip[0][1::2]


def _merged(means: Tensor, sooner: Tensor, later: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the `count` most similar of `later`: what is left of both, what is merged, and into what."""
    likeness = quantise(means[later] @ means[sooner].T)
    match = likeness.argmax(1)
    chosen = highest(likeness.gather(1, match[:, None]).squeeze(1), count)
    stays = torch.ones(len(later), dtype=torch.bool, device=later.device).index_fill(0, chosen, False)
    left = later[places_of(stays, len(later) - count)]
    return torch.cat([sooner, left]), later[chosen], sooner[match[chosen]]
