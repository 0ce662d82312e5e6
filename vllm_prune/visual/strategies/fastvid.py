"""Dense and looked-at cells of each scene, with the others merged in."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...grid import Grid
from ...shares import even_shares, largest_remainder
from ._attention import AttentionOptions, received
from ._merging import MergingStrategy
from .base import Context, Reduction
from .maths import absorb, density_peaks, highest, nearest, neighbour_similarity, scenes, sketch


class FastVidOptions(AttentionOptions):
    """Options of `fastvid`; the defaults are the authors'.

    Attributes:
        scenes: segments of a video at least.
        alike: cosine of neighbouring frames' means below which a video is always cut.
        density: share of a segment's K for centers of dense groups; the attended tokens have the rest.
        every: frames of a segment from one that has such centers to the next.
        least: smallest weight that a center keeps when others are merged into it.
    """

    scenes: Annotated[int, Field(ge=1, le=64)] = 8
    alike: Annotated[float, Field(ge=-1, le=1)] = 0.9
    density: Annotated[float, Field(ge=0, le=1)] = 0.4
    every: Annotated[int, Field(ge=1, le=64)] = 4
    least: Annotated[float, Field(ge=0, le=1)] = 0.6


class FastVid(MergingStrategy):
    """FastVID (arXiv 2503.11187): segments, density centers and attended tokens.

    The video is cut into segments (`maths.scenes`), and K is shared by their frames. Of a segment's share, 40% are
    density peaks (DPC-kNN, 4 neighbours) of every fourth frame, the rest the tokens that receive most attention, evenly
    over its frames. All other tokens of the segment are merged into the most similar density peak.
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
        segments = scenes(neighbour_similarity(tokens, grid), self.options.scenes, self.options.alike)
        caps = [len(frames) * grid.per_frame for frames in segments]
        shares = largest_remainder(count, caps, caps, 1 if count >= len(segments) else 0)
        kept, owner, absorbing = [], torch.full((grid.tokens,), -1, device=tokens.device), 0
        singles = []
        for frames, share in zip(segments, shares, strict=True):
            centers, attended = self._segment(units, attention, grid, frames, share)
            inside = slice(frames.start * grid.per_frame, frames.stop * grid.per_frame)
            if len(centers):
                owner[inside] = nearest(units[inside], units[centers]) + absorbing
            owner[torch.cat([centers, attended])] = -1
            kept.append(centers)
            singles.append(attended)
            absorbing += len(centers)
        chosen = torch.cat([*kept, *singles])
        owner = torch.where(owner < 0, count, owner)
        return Reduction(chosen, lambda rows: absorb(rows, chosen, owner, self.options.least))

    def _segment(
        self, units: Tensor, attention: Tensor, grid: Grid, frames: range, count: int
    ) -> tuple[Tensor, Tensor]:
        """Density peaks and attended tokens of one segment, `count` in all."""
        anchors = list(frames)[:: self.options.every]
        dense = min(round(self.options.density * count), len(anchors) * grid.per_frame)
        centers = {}
        for frame, share in zip(anchors, even_shares(dense, len(anchors), grid.per_frame), strict=True):
            start = frame * grid.per_frame
            if share:
                centers[frame] = density_peaks(units[start : start + grid.per_frame], share, 4) + start
        free = [grid.per_frame - len(centers.get(frame, ())) for frame in frames]
        attended = []
        for frame, share in zip(frames, largest_remainder(count - dense, [1] * len(free), free, 0), strict=True):
            start = frame * grid.per_frame
            seen = attention.index_fill(0, centers[frame], -1.0) if frame in centers else attention
            attended.append(highest(seen[start : start + grid.per_frame], share) + start)
        none = attention.new_empty(0, dtype=torch.int64)
        return torch.cat([none, *centers.values()]), torch.cat(attended)
