"""Dense and looked-at cells of each scene, with the others merged in."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...grid import Grid
from ...shares import even_shares, largest_remainder
from ._attention import AttentionOptions, received
from ._merging import MergingOptions, MergingStrategy, likeness
from ._reduction import alone
from .base import Context, Reduction, places_of
from .maths import absorb, compared, density_peaks, heaviest, highest, nearest, neighbour_similarity, scenes, sketch


class FastVidOptions(MergingOptions, AttentionOptions):
    """Options of `fastvid`, beside those of merging; the defaults are the authors'.

    Attributes:
        scenes: segments of a video at least.
        alike: cosine of neighbouring frames' means below which a video is always cut.
        density: share of a segment's K for centers of dense groups; the attended tokens have the rest.
        every: frames of a segment from one that has such centers to the one before; its last frame has.
        least: smallest weight that a center keeps when others are merged into it.
    """

    scenes: Annotated[int, Field(ge=1, le=64)] = 8
    alike: Annotated[float, Field(ge=-1, le=1)] = 0.9
    density: Annotated[float, Field(ge=0, le=1)] = 0.4
    every: Annotated[int, Field(ge=1, le=64)] = 4
    least: Annotated[float, Field(ge=0, le=1)] = 0.6


class FastVid(MergingStrategy):
    """FastVID (arXiv 2503.11187): segments, density centers and attended tokens.

    The video is cut into segments (`maths.scenes`), and K is shared by their frames. 60% of a segment's share are the
    tokens that receive most attention, evenly over its frames; the rest are density peaks (DPC-kNN, 4 neighbours) of
    what is left in every fourth frame, counted from the segment's last. All tokens of the segment but the attended ones
    are merged into the most similar density peak of each of these frames.

    The authors cut by features of a head of the tower's that models here do not have; frames' mean tokens stand for
    them. They round the shares of each frame, here they make K exact.
    """

    name = "fastvid"
    paper = "FastVID, arXiv 2503.11187, as in the authors' code"
    summary = "per scene: centers of dense groups, with the rest merged in, and what receives most attention (merges)"
    modalities = frozenset({"video"})
    needs = frozenset({"tower_attention"})
    floor = False
    Options = FastVidOptions
    options: FastVidOptions

    def waits_for_device(self) -> bool:
        """See `Strategy.waits_for_device`: scenes come from features."""
        return True

    def reduce_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Reduction:
        """See `MergingStrategy.reduce_span`."""
        attention, units = received(self.name, tokens, grid, context), sketch(tokens)
        rows = compared(tokens, grid.per_frame) / math.sqrt(tokens.shape[1])
        segments = scenes(neighbour_similarity(tokens, grid), self.options.scenes, self.options.alike)
        caps = [len(frames) * grid.per_frame for frames in segments]
        shares = largest_remainder(count, caps, caps, 1 if count >= len(segments) else 0)
        absorbing, attended = list[tuple[slice, Tensor, Tensor]](), []
        for frames, share in zip(segments, shares, strict=True):
            inside = slice(frames.start * grid.per_frame, frames.stop * grid.per_frame)
            centers, seen = self._segment(rows, attention, grid, frames, share)
            attended.append(seen)
            for of_frame in centers:
                owner = nearest(units[inside], units[of_frame]).index_fill_(0, seen - inside.start, len(of_frame))
                absorbing.append((inside, of_frame - inside.start, owner))
        single = torch.cat(attended)

        def merge(every: Tensor) -> Tensor:
            merged = [absorb(every[span], centers, owner, self.options.least) for span, centers, owner in absorbing]
            return torch.cat([*merged, every[single].float()])

        def members(parts: int) -> Tensor:
            merged = [_members(units[span], centers, owner, parts) + span.start for span, centers, owner in absorbing]
            return torch.cat([*merged, alone(single, parts)])

        places = [centers + span.start for span, centers, _ in absorbing]
        return Reduction(torch.cat([*places, single]), merge, members)

    def _segment(
        self, rows: Tensor, attention: Tensor, grid: Grid, frames: range, count: int
    ) -> tuple[list[Tensor], Tensor]:
        """Density peaks of each frame that has some, and attended tokens of one segment, `count` in all."""
        anchors = [frame for frame in frames if (frames[-1] - frame) % self.options.every == 0]
        dense = min(round(self.options.density * count), len(anchors) * grid.per_frame)
        of_anchors = even_shares(dense, len(anchors), grid.per_frame)
        share_of = dict(zip(anchors, of_anchors, strict=True))
        free = [grid.per_frame - share_of.get(frame, 0) for frame in frames]
        centers, attended = [], []
        for frame, share in zip(frames, largest_remainder(count - dense, [1] * len(free), free, 0), strict=True):
            cells = torch.arange(frame * grid.per_frame, (frame + 1) * grid.per_frame, device=rows.device)
            seen = cells[highest(attention[cells], share)]
            attended.append(seen)
            if share_of.get(frame, 0):
                left = torch.ones_like(attention, dtype=torch.bool).index_fill_(0, seen, False)[cells]
                left = cells[places_of(left, grid.per_frame - share)]
                centers.append(left[density_peaks(rows[left], share_of[frame], 4)])
        return centers, torch.cat(attended)


def _members(units: Tensor, centers: Tensor, owner: Tensor, parts: int) -> Tensor:
    """Members of each center, int64 [n, parts]: itself, then those absorbed that are most like their mean.

    A center that another one absorbs, as it is equal to that, is a member of both.
    """
    count, order = len(centers), torch.arange(len(centers), device=owner.device)
    away, alike = owner[centers] != order, likeness(units, owner, len(centers) + 1)
    itself = torch.zeros_like(alike).index_copy_(0, centers, (~away).to(alike.dtype))
    cells = torch.cat([torch.arange(len(owner), device=owner.device), centers])
    owners = torch.cat([owner, torch.where(away, order, count)])
    firsts = torch.cat([itself, torch.ones_like(alike[centers])])
    return cells[heaviest(owners, count, parts, firsts, torch.cat([alike, alike[centers]]))]
