"""Anchors of each clip, with the others carried to them by optimal transport."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...grid import Grid
from ...shares import even_shares, largest_remainder
from ._attention import AttentionOptions, received
from ._merging import MergingOptions, MergingStrategy, joined
from .base import Context, Reduction, places_of
from .maths import compared, heaviest_columns, highest, sinkhorn, unit_rows

_WINDOW = 9
_HARD = 0.1
_SPREAD = 1.5


class AotOptions(MergingOptions, AttentionOptions):
    """Options of `aot`, beside those of merging; the defaults are the authors' for short videos.

    Attributes:
        clip: frames of a clip, all of which are merged into anchors of the first.
        fresh: share of a later frame's anchors that are kept as they are, because the clip's anchors fit them least.
    """

    clip: Annotated[int, Field(ge=1, le=64)] = 4
    fresh: Annotated[float, Field(ge=0, le=1)] = 0.3


class Aot(MergingStrategy):
    """AOT (arXiv 2603.01400): local and global anchors, transport inside each frame, then over the frames of a clip.

    - Anchors of a frame: half of them receive most attention in their window of 9 x 9 cells, half in the whole frame.
      The authors look at a shallow and a deep layer for the two; here both are those of one late layer.
    - Inside a frame: every other token is carried to the anchors by entropic transport, whose cost is one minus the
      cosine plus half the distance on the unit square. An anchor becomes 0.9 times its weighted mean with what it gets,
      plus 0.1 times the mean of all that are most similar to it.
    - Over a clip: the anchors of each later frame, one frame after the other, are carried to those of the first, into
      which the frames before have gone; those with the least certain place are kept as they are, the others are merged.
      Costs of nearer frames count for less.

    The authors send the first frame's anchors twice, before and after the merge; here each position has one token, so
    they are sent merged. Anchors per frame are as many as make K exact.
    """

    name = "aot"
    paper = "AOT, arXiv 2603.01400, as in the authors' code, with one layer of attention"
    summary = "locally and globally attended visual tokens of each clip, the others carried to them (merges)"
    needs = frozenset({"tower_attention"})
    floor = False
    Options = AotOptions
    options: AotOptions

    def reduce_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Reduction:
        """See `MergingStrategy.reduce_span`."""
        attention = received(self.name, tokens, grid, context)
        rows = compared(tokens, grid.per_frame)
        clips = [range(t, min(t + self.options.clip, grid.frames)) for t in range(0, grid.frames, self.options.clip)]
        caps = [len(clip) * grid.per_frame for clip in clips]
        shares = largest_remainder(count, caps, caps, 1 if count >= len(clips) else 0)
        spans = list[tuple[slice, Reduction]]()
        for clip, share in zip(clips, shares, strict=True):
            if share:
                inside = slice(clip.start * grid.per_frame, clip.stop * grid.per_frame)
                of_clip = Grid(len(clip), grid.rows, grid.cols)
                spans.append((inside, self._clip(rows[inside], attention[inside], of_clip, share)))
        return joined(spans)

    def _clip(self, rows: Tensor, attention: Tensor, grid: Grid, count: int) -> Reduction:
        """Anchors of a clip's first frame and fresh ones of the others, `count` in all."""
        each = round(count / (1 + self.options.fresh * (grid.frames - 1)))
        each = min(grid.per_frame, count, max(each, -(-count // grid.frames)))
        frames = rows.view(grid.frames, grid.per_frame, -1)
        anchors = _anchors(attention.view(grid.frames, -1), grid, each)
        inside = _inside_frames(unit_rows(frames), anchors, grid)
        fresh, plans = torch.empty(0, dtype=torch.int64, device=rows.device), list[Tensor]()
        if grid.frames > 1:
            fresh, plans = _over_frames(inside @ frames, even_shares(count - each, grid.frames - 1, each))
        places = anchors + torch.arange(grid.frames, device=rows.device)[:, None] * grid.per_frame

        def merge(every: Tensor) -> Tensor:
            first, *later = inside @ every.float().view(grid.frames, grid.per_frame, -1)
            for plan, one in zip(plans, later, strict=True):
                first = _carry(first, plan, one)
            return torch.cat([first, torch.cat([first, *later])[fresh]])

        def members(parts: int) -> Tensor:
            return _members(inside, plans, fresh, parts)

        return Reduction(torch.cat([places[0], places.flatten()[fresh]]), merge, members)


def _anchors(attention: Tensor, grid: Grid, count: int) -> Tensor:
    """Local and global anchors of each frame, int64 [T, count], from attention [T, P]."""
    device = attention.device
    row = torch.arange(grid.rows, device=device) // _WINDOW
    col = torch.arange(grid.cols, device=device) // _WINDOW
    across = -(-grid.cols // _WINDOW)
    windows, window = -(-grid.rows // _WINDOW) * across, (row[:, None] * across + col).flatten()
    order = attention.argsort(dim=1, descending=True, stable=True)
    # How many cells of its window come before a cell: windows take turns, the most attended cell of each first.
    seen = (window[order][..., None] == torch.arange(windows, device=device)).long().cumsum(1)
    turn = seen.gather(2, window[order][..., None]).squeeze(2)
    local = order.gather(1, turn.argsort(dim=1, stable=True)[:, : count // 2])
    # In the frame as a whole, those that are no local anchors.
    left = attention.scatter(1, local, -1.0).argsort(dim=1, descending=True, stable=True)[:, : count - count // 2]
    return torch.cat([local, left], dim=1)


def _inside_frames(frames: Tensor, anchors: Tensor, grid: Grid) -> Tensor:
    """Weights of all cells in each anchor, float32 [T, A, P], of unit cells [T, P, d]."""
    count, each = grid.per_frame, anchors.shape[1]
    weights = torch.zeros(grid.frames, each, count, device=frames.device)
    if each == count:
        return weights.scatter_(2, anchors[..., None], 1.0)
    others = torch.ones(grid.frames, count, dtype=torch.bool, device=frames.device).scatter_(1, anchors, False)
    others = places_of(others.flatten(), grid.frames * (count - each)).view(grid.frames, -1) % count
    similar = _rows_at(frames, others) @ _rows_at(frames, anchors).mT
    place = torch.arange(count, device=frames.device)
    square = torch.stack(
        [(place // grid.cols) / max(1, grid.rows - 1), (place % grid.cols) / max(1, grid.cols - 1)], dim=1
    )
    soft = sinkhorn(1 - similar + 0.5 * torch.cdist(square[others], square[anchors]))
    best = similar.argmax(2)
    sent = torch.zeros(grid.frames, each, device=frames.device).scatter_add_(1, best, torch.ones_like(similar[..., 0]))
    gentle, hard = (1 - _HARD) / (1 + soft.sum(1)), _HARD / (1 + sent)
    mixed = (soft * gentle[:, None]).scatter_add_(2, best[..., None], hard.gather(1, best)[..., None])
    weights.scatter_(2, others[:, None].expand(-1, each, -1), mixed.mT)
    return weights.scatter_(2, anchors[..., None], (gentle + hard)[..., None])


def _rows_at(frames: Tensor, places: Tensor) -> Tensor:
    """Cells of each frame at int64 [T, n]; [T, n, d] from [T, P, d]."""
    return frames.gather(1, places[..., None].expand(-1, -1, frames.shape[2]))


def _over_frames(carried: Tensor, fresh: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Which anchors of later frames are kept, and with which weights the others go to those of the first.

    Args:
        carried: anchors of each frame, float32 [T, A, d].
        fresh: anchors of each later frame that are kept as they are.

    Returns:
        int64 [sum of fresh] among T * A, and for each later frame float32 [A, A], rows of zeros for kept ones.
    """
    first, *later = carried
    chosen, plans = [torch.empty(0, dtype=torch.int64, device=carried.device)], []
    for apart, (one, count) in enumerate(zip(later, fresh, strict=False), start=1):
        cost = 1 - unit_rows(one) @ unit_rows(first).T
        plan = sinkhorn((cost - cost.amin()) * (1 - math.exp(-(apart**2) / (2 * _SPREAD**2))))
        plan = plan / plan.sum(1, keepdim=True)
        places = highest(-plan.amax(1), count)
        plans.append(plan.index_fill(0, places, 0.0))
        chosen.append(places + apart * len(one))
        first = _carry(first, plans[-1], one)
    return torch.cat(chosen), plans


def _carry(anchors: Tensor, plan: Tensor, rows: Tensor) -> Tensor:
    """The weighted mean of each anchor with the rows that a plan sends to it."""
    return (anchors + plan.T @ rows) / (1 + plan.sum(0)[:, None])


def _members(inside: Tensor, plans: list[Tensor], fresh: Tensor, parts: int) -> Tensor:
    """The cells of a clip that weigh most in each of its tokens, int64 [K, parts].

    Args:
        inside: float32 [T, A, P], weights of each frame's cells in its anchors.
        plans, fresh: see `_over_frames`.
        parts: cells of each.
    """
    first, *later = inside
    blocks = [first]
    for plan, one in zip(plans, later, strict=True):
        share = 1 / (1 + plan.sum(0)[:, None])
        blocks = [share * block for block in (*blocks, plan.T @ one)]
    each, per_frame = inside.shape[1:]
    single = heaviest_columns(inside.flatten(0, 1)[fresh], parts) + (fresh // each * per_frame)[:, None]
    return torch.cat([heaviest_columns(torch.cat(blocks, dim=1), parts), single])
