"""A coarse picture, and what it leaves out."""

from __future__ import annotations

import torch
from torch import Tensor

from ...grid import Grid
from ...shares import even_shares
from ._merging import MergingStrategy, likeness
from ._reduction import alone
from .base import Context, Reduction
from .maths import heaviest, highest, mean_by, sketch, unit_rows

_NONE = 1 << 40
"""In the place of a block: none."""


class ElasticPool(MergingStrategy):
    """Pooled anchors and residual picks, after PARCEL's elastic tokenizer, without its trained queries.

    Each frame has its even share of K. Up to half of it are means of square blocks, the smallest blocks for which that
    is enough, each at the position of its middle token; the rest are the tokens that are least like the mean of their
    block, kept as they are and left out of that mean.
    """

    name = "elastic_pool"
    paper = "ours, after the idea of PARCEL; untrained"
    summary = "means of square blocks, and the visual tokens that are least like theirs (merges)"

    def reduce_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Reduction:
        """See `MergingStrategy.reduce_span`."""
        shares = even_shares(count, grid.frames, grid.per_frame, 1 if count >= grid.frames else 0)
        blocks, picks, owner, anchors = [], [], [], 0
        for t, (share, frame) in enumerate(zip(shares, tokens.split(grid.per_frame), strict=True)):
            if not share:
                owner.append(torch.full((grid.per_frame,), _NONE, device=tokens.device))
                continue
            middle, block, rest = _frame(frame, grid, share)
            blocks.append(middle + t * grid.per_frame)
            picks.append(rest + t * grid.per_frame)
            owner.append(torch.where(block == _NONE, block, block + anchors))
            anchors += len(middle)
        owners, single = torch.cat(owner).clamp_max(anchors), torch.cat(picks)

        def merge(rows: Tensor) -> Tensor:
            return torch.cat([mean_by(rows, owners, anchors + 1)[:anchors], rows[single].float()])

        def members(parts: int) -> Tensor:
            in_blocks = heaviest(owners, anchors, parts, likeness(sketch(tokens), owners, anchors + 1))
            return torch.cat([in_blocks, alone(single, parts)])

        return Reduction(torch.cat([*blocks, single]), merge, members)


def _frame(tokens: Tensor, grid: Grid, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Middle tokens of the blocks, the block of each token that is not picked, and the picked ones."""
    side = _side(grid, max(1, count // 2))
    row = torch.arange(grid.rows, device=tokens.device)
    col = torch.arange(grid.cols, device=tokens.device)
    down, across = -(-grid.rows // side), -(-grid.cols // side)
    block = ((row // side)[:, None] * across + col // side).flatten()
    middle_row = (torch.arange(down, device=row.device) * side + (side - 1) // 2).clamp_max(grid.rows - 1)
    middle_col = (torch.arange(across, device=row.device) * side + (side - 1) // 2).clamp_max(grid.cols - 1)
    middle = (middle_row[:, None] * grid.cols + middle_col).flatten()
    means = mean_by(tokens, block, down * across)
    away = 1 - (unit_rows(tokens) * unit_rows(means)[block]).sum(1)
    picks = highest(away.index_fill(0, middle, -1.0), count - len(middle))
    return middle, block.index_fill(0, picks, _NONE), picks


def _side(grid: Grid, most: int) -> int:
    """Side of the smallest square blocks of which a frame has at most `most`."""
    side = 1
    while -(-grid.rows // side) * -(-grid.cols // side) > most:
        side += 1
    return side
