"""How sensitive the projector is to each cell: central differences along random directions (zeroth-order gradients)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from ..strategies.base import to_device
from .received_attention import Listener, in_raster_order

DIRECTIONS = 4
STEP = 0.1
"""Of a cell's own length, as what is smaller than that drowns in the rounding of bfloat16."""

_SEED = 0x500


class ProjectorSensitivity(Listener):
    """Listens to the tower's merger, and runs it again beside each cell; only for items whose strategy needs that."""

    def __init__(self, model: Any, enabled: bool) -> None:
        super().__init__(*[model.visual.merger] * enabled)
        self._model = model

    def __enter__(self) -> Self:
        # vLLM decorates mergers with `support_torch_compile`, whose call goes past hooks, straight to this attribute.
        for module in self._modules:
            project = module.forward

            def forward(x: Tensor, project: Callable[[Tensor], Tensor] = project, module: Any = module) -> Tensor:
                self._received[module].append(sensitivity(project, x, self._model._merge**2))
                return project(x)

            module.forward = forward
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module in self._modules:
            del module.forward

    def per_item(self, grid_thw: Tensor) -> list[Tensor | None]:
        """Sensitivity of each item's cells, float32 [M] in raster order, or None where it was not measured."""
        received = self._joined()
        return list(in_raster_order(self._model, received[0], grid_thw)) if len(received) else [None] * len(grid_thw)


def sensitivity(project: Callable[[Tensor], Tensor], patches: Tensor, unit: int) -> Tensor:
    """Mean length of the projector's directional derivatives at each cell (ZOO-Prune, arXiv 2509.24837, section 3).

    Directions are the same for all cells of all items, unit vectors over the patches of a cell; a step along one is a
    tenth of the cell's own length, so that no cell's figure depends on what it is batched with. Neither the authors'
    step nor their number of directions is known.

    Args:
        project: from patches to cells: the merger's forward.
        patches: [N, ..., C], input of the projector, the patches of a cell one after the other.
        unit: patches of a cell.

    Returns:
        float32 [N / unit].
    """
    cells = patches.reshape(len(patches) // unit, -1)
    step = STEP * cells.float().norm(dim=1, keepdim=True).clamp_min(1e-6)
    total = torch.zeros(len(cells), device=cells.device)
    for direction in _directions(cells.shape[1], cells.device):
        ahead, behind = (
            project((cells.float() + sign * step * direction).to(cells.dtype).view_as(patches)) for sign in (1, -1)
        )
        total += (ahead.float() - behind.float()).flatten(1).norm(dim=1)
    return total / (2 * DIRECTIONS * step.squeeze(1))


@lru_cache(maxsize=8)
def _directions(width: int, device: torch.device) -> Tensor:
    """Unit rows, float32 [DIRECTIONS, width], the same in every process."""
    generator = torch.Generator().manual_seed(_SEED)
    return to_device(torch.nn.functional.normalize(torch.randn(DIRECTIONS, width, generator=generator), dim=1), device)
