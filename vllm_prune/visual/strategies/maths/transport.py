"""Optimal transport between two sets of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .vectors import quantise

STEPS = 50


def sinkhorn(cost: Tensor, blur: float = 0.1, steps: int | None = None) -> Tensor:
    """Entropic transport plan between uniform marginals (Cuturi 2013), [..., m, n] from costs [..., m, n].

    A fixed number of steps, so that the plan depends on nothing but its costs. The last step fits the rows: each sums
    to 1 / m, columns to about 1 / n.

    Args:
        cost: float32, not negative; costs of more than 60 * blur count as that much.
        blur: weight of the entropy.
        steps: at least 1, `STEPS` by default.
    """
    kernel = (-(cost / blur).clamp_max(60)).exp()
    m, n = cost.shape[-2:]
    left = torch.ones_like(kernel[..., :1])
    right = left
    for _ in range(STEPS if steps is None else steps):
        right = 1 / (n * (kernel.mT @ left))
        left = 1 / (m * (kernel @ right))
    return left * kernel * right.mT


def heaviest_columns(plan: Tensor, count: int) -> Tensor:
    """The columns that weigh most in each row of a plan, int64 [m, count] from [m, n], heaviest first.

    Where fewer have any weight these come in turn again. Every row has one.
    """
    values = quantise(plan)
    order = values.argsort(dim=1, descending=True, stable=True)[:, :count]
    some = (values > 0).sum(1, keepdim=True).clamp(1, order.shape[1])
    return order.gather(1, torch.arange(count, device=plan.device) % some)
