"""What strategies for screenshots share: the saliency of the current one, and where visual tokens stand in theirs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...signals import KvSignal
from .base import LayerView

NormSource = Literal["normed", "residual", "value"]

NOISE = 3e-5
"""Spread of norms, as a share of their mean, that is taken for rounding: behind an RMSNorm of equal weights all norms
are equal, and without this the boost would follow the last bits, which differ with the number of ranks. In bfloat16
the norm of some thousand values is off by about as much."""


def signal_of(source: NormSource) -> KvSignal:
    """The signal that holds those norms."""
    return "values" if source == "value" else "saliency"


REDUNDANT = -1.0
"""Score of rows that earlier screenshots repeat: below every other, as a sum of probabilities is never negative."""

STRIDE = 1 << 20
"""More than a screen has rows, or columns."""


def redundant_count(view: LayerView, earlier: int, share: float) -> int:
    """How many of `earlier` visual tokens the budget takes away, times a share (GUI-KV section 3.2)."""
    # 1 - 0.9 is not exactly 0.1; the digits behind the ninth are noise.
    return int(round(share * (1 - view.gamma) * earlier, 9))


def saliency_boost(view: LayerView, alpha: float, tau: float, source: NormSource, around: bool = False) -> Tensor:
    """Saliency alpha * softmax(z / tau) over the current screenshot (GUI-KV section 3.1).

    Args:
        view: a layer at a request's first compaction.
        alpha: sum of the boost over the screenshot.
        tau: temperature of the softmax over its standardised norms.
        source: which norms.
        around: whether the mean of the 3 x 3 cells around a token is added to its norm; beyond the edge is zero.

    Returns:
        float32 [H, L], zero outside the current screenshot, which is the last item.
    """
    boost = torch.zeros_like(view.keys[..., 0])
    if not view.items or len(view.items[-1]) < 2:
        return boost
    current = view.items[-1]
    norms = _norms(view, source)[:, current]
    if around:
        norms = norms + _sums_around(norms, cells(view, current)) / 9
    mean = norms.mean(dim=1, keepdim=True)
    spread = norms.std(dim=1, keepdim=True)
    # Squared, so that what is far below the noise moves nothing: next to 1 / spread where it is far above.
    z = (norms - mean) * spread / (spread + NOISE * mean).square()
    boost[:, current] = alpha * (z / tau).softmax(dim=1)
    return boost


def _norms(view: LayerView, source: NormSource) -> Tensor:
    """What the source names, [H, L]."""
    if source == "value":
        return view.values().norm(dim=-1)
    norms = view.normed_saliency if source == "normed" else view.saliency
    assert norms is not None
    return norms


def _sums_around(amounts: Tensor, places: Tensor) -> Tensor:
    """Sums over the 3 x 3 cells around each visual token, itself among them, [H, n], for int64 [3, n] cells."""
    frame, row, column = places
    # One number per cell; neighbours' differ by 1 or by STRIDE. There is room for steps to either side of the screen.
    number = (frame * STRIDE + row + 1) * STRIDE + column + 1
    held, order = number.sort()
    total = torch.zeros_like(amounts)
    for step in (down * STRIDE + along for down in (-1, 0, 1) for along in (-1, 0, 1)):
        at = torch.searchsorted(held, number + step).clamp(max=len(held) - 1)
        total += amounts[:, order[at]] * (held[at] == number + step)
    return total


def cells(view: LayerView, item: Tensor) -> Tensor:
    """Where the visual tokens of an item stand in it, from the positions that attention rotates by.

    Args:
        view: a layer at a request's first compaction.
        item: int64 [n], rows of the item.

    Returns:
        int64 [3, n]: frame (counted in positions), row and column, from 0 on. Without coordinates, in a model with one
        position per token: frame 0, row 0, and the token's place among those of the item as its column.
    """
    place = torch.arange(len(item), device=item.device)
    if view.coordinates is None:
        return torch.stack([torch.zeros_like(place), torch.zeros_like(place), place])
    frame, *inside = view.coordinates[:, item]
    first, deep = frame.amin(), torch.stack(inside)
    # Rows and columns count from the position of an item's first frame or, with text between frames, of their own.
    origin = torch.where((deep - frame).amin() >= 0, frame, first)
    return torch.cat([(frame - first)[None], deep - origin])
