"""Muon (Jordan et al. 2024) in float32: torch's own works in bfloat16, which most CPUs only emulate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

STEPS = 4
# Coefficients of the quintic Newton-Schulz iteration, Jordan et al. 2024.
A, B, C = 3.4445, -4.7750, 2.0315
RMS = 0.2
"""Root mean square of an update at rate one, as AdamW's (Liu et al. 2025, equation 4)."""


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices, Nesterov style, with decoupled weight decay."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update."""
        del closure
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for one in group["params"]:
                by_shape.setdefault(tuple(one.shape), []).append(one)
            for shape, members in by_shape.items():
                updates = []
                for one in members:
                    state = self.state[one]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(one)
                    state["momentum"].lerp_(one.grad, 1 - group["momentum"])
                    updates.append(one.grad.lerp(state["momentum"], group["momentum"]))
                scale = RMS * max(shape) ** 0.5 * group["lr"]
                for one, update in zip(members, orthogonal(torch.stack(updates)), strict=True):
                    one.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices, about; [N, rows, cols]."""
    wide = matrices.shape[1] <= matrices.shape[2]
    found = matrices if wide else matrices.transpose(1, 2)
    found = found / (found.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        square = found @ found.transpose(1, 2)
        found = A * found + (B * square + C * square @ square) @ found
    return found if wide else found.transpose(1, 2)
