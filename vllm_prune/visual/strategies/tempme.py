"""Neighbouring frames merged pair by pair."""

from __future__ import annotations

import torch
from torch import Tensor

from ...grid import Grid
from ...shares import largest_remainder
from ._merging import MergingStrategy
from .base import Context, Reduction
from .maths import highest, mean_by, quantise, sketch, unit_rows


class TempMe(MergingStrategy):
    """TempMe's progressive merging (arXiv 2409.01156, section 3) behind the tower, without its training.

    First tokens merge inside each frame, then inside each pair of neighbouring frames, each pair of pairs, and so on
    until the whole video is one clip. Every stage leaves the same share of what the one before left. A merge joins
    the most similar pairs between two halves of a clip, the later token into the earlier one (inside a frame: every
    second token into one of the others), as ToMe does; a merged token is the mean of all its members.
    """

    name = "tempme"
    paper = "after TempMe, arXiv 2409.01156, section 3; untrained"
    summary = "alike visual tokens merged inside frames, then over pairs of frames, pairs of pairs and so on (merges)"
    floor = False

    def reduce_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Reduction:
        """See `MergingStrategy.reduce_span`."""
        units = sketch(tokens)
        owner = torch.arange(grid.tokens, device=tokens.device)
        left, stages = grid.tokens, 1 + (grid.frames - 1).bit_length()
        for stage in range(stages):
            target = max(count, round(grid.tokens * (count / grid.tokens) ** ((stage + 1) / stages)))
            target = count if stage + 1 == stages else target
            clip = grid.per_frame << stage
            before = 0
            # Clips of one token have nothing to merge before they are joined.
            while left > target and left != before:
                owner = _merged(units, owner, clip, stage > 0, left - target)
                before, left = left, len(owner.unique())
        starts, place = owner.unique(return_inverse=True)
        return Reduction(starts, lambda rows: mean_by(rows, place, count))


def _merged(units: Tensor, owner: Tensor, clip: int, halves: bool, most: int) -> Tensor:
    """One pass of merges inside clips: int64 [M], the token that each one has become part of.

    Args:
        units: unit rows of all tokens.
        owner: int64 [M], what each token has become part of so far.
        clip: tokens of a clip before any merge.
        halves: whether a clip's later half merges into its earlier one, or every second token into the others.
        most: merges at most; at least one is made.
    """
    alive, place = owner.unique(return_inverse=True)
    means = unit_rows(mean_by(units, place, len(alive)))
    clips = (alive // clip).unique_consecutive(return_counts=True)[1].tolist()
    sides = [_sides(nodes, clip, halves) for nodes in alive.split(clips)]
    caps = [len(later) for _, later in sides]
    shares = largest_remainder(min(most, sum(caps)), clips, caps, 0)
    target, start = torch.arange(len(alive), device=units.device), 0
    for (sooner, later), size, share in zip(sides, clips, shares, strict=True):
        if share:
            part = means[start : start + size]
            likeness = quantise(part[later] @ part[sooner].T)
            match = likeness.argmax(1)
            chosen = highest(likeness.gather(1, match[:, None]).squeeze(1), share)
            target[later[chosen] + start] = sooner[match[chosen]] + start
        start += size
    return alive[target[place]]


def _sides(nodes: Tensor, clip: int, halves: bool) -> tuple[Tensor, Tensor]:
    """Places of the tokens that others merge into, and of those that merge; both non-empty where there are two."""
    late = (nodes % clip) >= clip // 2 if halves else torch.arange(len(nodes), device=nodes.device) % 2 == 1
    if bool(late.all()) or not bool(late.any()):
        late = torch.arange(len(nodes), device=nodes.device) % 2 == 1
    return (~late).nonzero().squeeze(1), late.nonzero().squeeze(1)
