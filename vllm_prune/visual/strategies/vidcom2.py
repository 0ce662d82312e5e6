"""Cells that differ from their frame and from the whole item, as vLLM keeps them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...grid import Grid
from .base import Context, Strategy, places_of

_BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
_TEMPERATURE = 0.01


class VidCom2(Strategy):
    """Video Compression Commander (arXiv 2505.14454): rank by distance to the frame's and the item's mean.

    On the calmer half of the channels, a cell is redundant when Gaussian kernels of several widths put it
    near the mean cell of its frame (f) and of the item (v); the lowest v + f are kept. A frame's share of
    K is K/T, raised where the frame as a whole is far from the item's mean.

    The kept cells are those of vLLM's `--video-pruning-method vidcom2` called with `pruning_rate(K, M)`. To make
    that exact, everything is computed in the dtype of the tokens, and ties (common in bf16, also between
    channels) fall as `torch.topk` lets them, which is fixed for a device. Bringing the frames' shares to
    the exact K may take the only cell of a frame, as it may in vLLM, so no floor is promised.
    """

    name = "vidcom2"
    paper = "VidCom2, arXiv 2505.14454"
    summary = "visual tokens far from their frame's and the item's mean; same decisions as vLLM's"
    floor = False

    def waits_for_device(self) -> bool:
        """See `Strategy.waits_for_device`: shares of frames come from features."""
        return True

    def score(self, tokens: Tensor, grid: Grid, context: Context) -> Tensor:
        """Minus the redundancy v + f; see `Strategy.score`."""
        to_item, to_frame = _redundancy(tokens, grid)
        return -(to_item + to_frame).flatten().float()

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`."""
        to_item, to_frame = _redundancy(tokens, grid)
        redundancy = to_item + to_frame
        shares = _shares(to_item, 1.0 - pruning_rate(count, grid.tokens))
        kept = torch.zeros_like(redundancy, dtype=torch.bool)
        for frame, share in enumerate(shares):
            kept[frame, _lowest(redundancy[frame], share)] = True
        return _exactly(kept.flatten(), redundancy.flatten(), count, sum(shares))


def pruning_rate(count: int, total: int) -> float:
    """The rate q that most likely made vLLM keep `count` of `total`, int(total * (1 - q)) = count.

    Many rates give the same count, yet slightly different shares per frame. Rates are written with few
    decimals, so the roundest rate that fits is taken, and 1 - count / total where none of up to three does.
    """
    if 100 * count % total == 0 and _gives((rate := (100 - 100 * count // total) / 100), count, total):
        return rate
    for parts in (10, 20, 100, 1000):
        # Floor and one more: in floats total * (1 - q) may land just below a whole number.
        for kept in (-(-count * parts // total), count * parts // total + 1):
            if _gives((parts - kept) / parts, count, total):
                return (parts - kept) / parts
    rate = 1.0 - count / total
    while rate > 0 and not _gives(rate, count, total):
        rate = math.nextafter(rate, 0.0)
    return rate


def _gives(rate: float, count: int, total: int) -> bool:
    return 0 <= rate < 1 and int(total * (1.0 - rate)) == count


def _redundancy(tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Kernel similarity of each cell to the item's mean and to its frame's mean, both [T, P]."""
    tokens = tokens.contiguous()
    spread = tokens.var(dim=0, correction=0)
    calm = torch.topk(spread, max(1, tokens.shape[1] // 2), largest=False).indices
    cells = tokens.index_select(1, calm).view(grid.frames, grid.per_frame, -1)
    cells = torch.nn.functional.normalize(cells, dim=-1)
    to_item = _kernels(cells, cells.mean(dim=(0, 1), keepdim=True))
    # The mean of a frame alone is the item's.
    return to_item, to_item if grid.frames == 1 else _kernels(cells, cells.mean(dim=1, keepdim=True))


def _kernels(cells: Tensor, center: Tensor) -> Tensor:
    squared = (cells - center).pow(2).sum(dim=-1)
    total = torch.zeros_like(squared)
    for width in _BANDWIDTHS:
        total = total + torch.exp(-squared / (2 * width))
    return total


def _shares(to_item: Tensor, keep: float) -> list[int]:
    """Cells per frame before they are brought to the exact count, each 1 to P."""
    cells = to_item.shape[1]
    distinct = -to_item.mean(dim=-1)
    weight = torch.softmax((distinct - distinct.max()) / _TEMPERATURE, dim=0)
    part = (keep * (1.0 + weight - weight.mean())).clamp(max=1.0)
    return [int(n) for n in (part * cells).round().long().clamp(1, cells).tolist()]


def _exactly(kept: Tensor, redundancy: Tensor, count: int, now: int) -> Tensor:
    """Drop the most redundant kept cells, or add the least redundant others; int64 [count], any order."""
    inside, outside = places_of(kept, now), places_of(~kept, len(kept) - now)
    if now > count:
        dropped = torch.topk(redundancy[inside], now - count, sorted=False).indices
        kept[inside[dropped]] = False
    elif now < count:
        kept[outside[_lowest(redundancy[outside], count - now)]] = True
    return places_of(kept, count)


def _lowest(values: Tensor, count: int) -> Tensor:
    return torch.topk(values, count, largest=False, sorted=False).indices
