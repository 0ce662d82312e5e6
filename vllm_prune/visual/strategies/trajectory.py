"""One token for what is followed from frame to frame."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...grid import Grid
from ._merging import MergingOptions, MergingStrategy, group_means
from .base import Context, Reduction, places_of
from .maths import cluster, diverse_order, highest, match, mean_by, sketch, unit_rows


class TrajectoryOptions(MergingOptions):
    """Options of `trajectory`, beside those of merging.

    Attributes:
        radius: how far content may move between two frames, in visual tokens.
    """

    radius: Annotated[int, Field(ge=0, le=3)] = 1


class Trajectory(MergingStrategy):
    """Tracks of visual tokens, after TrajViT (arXiv 2505.23617), without its segmenter and its training.

    Each token is linked to the most similar one of the previous frame within `radius`. The M - K most similar links of
    the video join tokens to tracks, which leaves exactly K of them; a track becomes one token, the mean of its members'
    features, at the position where it begins. Fewer tokens than a frame has need more: then all links join, and the
    tracks themselves are grouped by k-means. Inside single frames (where the model family fixes their counts) there are
    no links, and k-means alone is left.
    """

    name = "trajectory"
    paper = "after TrajViT, arXiv 2505.23617; untrained"
    summary = "one visual token for each piece of content that is followed over frames (merges)"
    modalities = frozenset({"video"})
    floor = False
    Options = TrajectoryOptions
    options: TrajectoryOptions

    def reduce_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Reduction:
        """See `MergingStrategy.reduce_span`."""
        units = sketch(tokens)
        number = max(count, grid.per_frame)
        roots = self._roots(units, grid, number)
        begins = roots == torch.arange(grid.tokens, device=roots.device)
        starts, owner = places_of(begins, number), (begins.cumsum(0) - 1)[roots]
        if count == number:
            return group_means(units, starts, owner)
        tracks = unit_rows(mean_by(units, owner, number))
        first = highest(-(tracks @ tracks.mean(0)), 1)
        kept, group = cluster(tracks, diverse_order(tracks, count, lambda _, similar: 1 - similar, first), 3)
        return group_means(units, starts[kept], group[owner])

    def _roots(self, units: Tensor, grid: Grid, tracks: int) -> Tensor:
        """The first token of each token's track, int64 [M], with `tracks` tracks in all."""
        root = torch.arange(grid.tokens, device=units.device)
        links = grid.tokens - tracks
        if not links:
            return root
        frames = units.view(grid.frames, grid.rows, grid.cols, -1)
        matches = [match(frames[t], frames[t - 1], self.options.radius) for t in range(1, grid.frames)]
        likeness = torch.cat([best.flatten() for best, _ in matches])
        source = torch.cat([index.flatten() + t * grid.per_frame for t, (_, index) in enumerate(matches)])
        linked = highest(likeness, links)
        root[linked + grid.per_frame] = source[linked]
        # Every step doubles how far back a token looks.
        for _ in range(grid.frames.bit_length()):
            root = root[root]
        return root
