"""Which of the window's queries count, and how much (after ActQKV, arXiv 2502.13542, its activation bias)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .base import LayerView, NoKvOptions

NOISE = 1e-6
"""Spread of a channel, as a share of the queries' mean square, that is taken for rounding."""

TIE = 1e-4
"""Share by which biases may differ and still count as equal."""


class WindowOptions(NoKvOptions):
    """Options of all strategies that look at the window's queries.

    Attributes:
        probe: which queries of the window count. "last" takes all alike; "activation" takes the half that deviates most
            from the window's mean, each in proportion to how much it does (after ActQKV).
    """

    probe: Literal["last", "activation"] = "last"


def probe_weights(view: LayerView, options: WindowOptions) -> Tensor | None:
    """How much each query of the window counts, float32 [H, G, W] of mean 1; None where all count alike.

    The bias of query w is the mean over channels of (q_w - mean)^2 / variance, with the mean and the variance of the
    window. Queries whose bias is below that of the middle one count nothing, the others in proportion to it.
    """
    if options.probe == "last":
        return None
    queries, heads = view.queries, len(view.keys)
    assert queries is not None
    size = len(queries)
    grouped = queries.view(size, heads, -1, queries.shape[-1]).permute(1, 2, 0, 3)
    apart = (grouped - grouped.mean(dim=2, keepdim=True)).square()
    noise = NOISE * grouped.square().mean(dim=(2, 3), keepdim=True)
    bias = (apart / (apart.mean(dim=2, keepdim=True) + noise).clamp(min=torch.finfo(apart.dtype).tiny)).mean(dim=3)
    threshold = bias.sort(dim=2, descending=True).values[..., (size - 1) // 2, None]
    # Of two queries both deviate alike, but for rounding.
    bias = bias.masked_fill(bias < (1 - TIE) * threshold, 0.0)
    total = bias.sum(dim=2, keepdim=True)
    # Equal queries deviate by nothing, or by rounding; so does a single one.
    return torch.where(total > NOISE * size, bias * size / total.clamp(min=NOISE), 1.0)
