"""The medoids of groups of alike cells, in every few frames."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...grid import Grid
from ...shares import largest_remainder
from .base import Context, Strategy, TowerOptions
from .maths import cluster, diverse_order, highest, sketch


class CenterClipOptions(TowerOptions):
    """Options of `centerclip`, beside those of where it runs.

    Attributes:
        frames: neighbouring frames whose visual tokens are grouped together.
        steps: how often medoids are computed anew.
    """

    frames: Annotated[int, Field(ge=1, le=64)] = 2
    steps: Annotated[int, Field(ge=0, le=50)] = 3


class CenterClip(Strategy):
    """CenterCLIP's operator (arXiv 2205.00823, section 3.2) without its training: k-medoids++ in segments of a video.

    Each segment of neighbouring frames has its even share of K. Its first centers are the longest token and then, one
    after the other or in blocks, those farthest from all before (the paper's KKZ start); every token joins the most
    similar center, and each group's medoid is its new center. Medoids are kept. Similarities are those of a 128-wide
    sketch. The paper clusters inside its own, trained tower.
    """

    name = "centerclip"
    paper = "after CenterCLIP, arXiv 2205.00823, section 3.2; untrained"
    summary = "medoids of groups of alike visual tokens, in every few frames"
    floor = False
    Options = CenterClipOptions
    options: CenterClipOptions

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`."""
        units, lengths = sketch(tokens).split(self._size(grid)), tokens.float().norm(dim=-1).split(self._size(grid))
        sizes = [len(part) for part in units]
        shares = largest_remainder(count, sizes, sizes, 1 if count >= len(sizes) else 0)
        kept, start = [], 0
        for part, length, share in zip(units, lengths, shares, strict=True):
            if share:
                first = diverse_order(
                    part, share, lambda _, similar: 1 - similar, highest(length / length.max().clamp_min(1e-12), 1)
                )
                kept.append(cluster(part, first, self.options.steps, medoid_centers=True)[0] + start)
            start += len(part)
        return torch.cat(kept)

    def _size(self, grid: Grid) -> int:
        return self.options.frames * grid.per_frame
