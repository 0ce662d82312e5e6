"""Cutting cells inside a vision tower: the blocks after the cut run on the kept cells alone.

Attention with cumulative sequence lengths needs no padding, so packing survivors is leaving the others out and
counting anew. STTS (arXiv 2603.18004, section 3) cuts in the same place, by learned scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Choose = Callable[[Tensor], Tensor]
"""From features of all cells of a batch, float32 [cells, width] in raster order, to the kept ones, int64, ascending."""


@dataclass(frozen=True)
class Survivors:
    """The cells of a tower's batch that go on. How many is known beforehand, so nothing waits for a device.

    Attributes:
        places: int64 [K], their places in the tower's own order, ascending.
        unit: patches of a cell, which lie side by side.
        before: int64 [cells + 1], patches that go on in front of each cell.
    """

    places: Tensor
    unit: int
    before: Tensor

    @classmethod
    def of(cls, places: Tensor, cells: int, unit: int) -> Survivors:
        """Survivors at ascending places among `cells` cells."""
        alive = torch.zeros(cells, dtype=torch.int64, device=places.device).index_fill(0, places, 1)
        return cls(places, unit, torch.nn.functional.pad(alive.cumsum(0), (1, 0)) * unit)

    def patches(self, rows: Tensor) -> Tensor:
        """Rows of their patches: [cells * unit, ...] to [K * unit, ...]."""
        return rows.view(len(self.before) - 1, self.unit, *rows.shape[1:])[self.places].flatten(0, 1)

    def offsets(self, offsets: Tensor) -> Tensor:
        """Cumulative lengths of the same sequences after the cut; some may be empty."""
        return self.before[offsets.long() // self.unit].to(offsets.dtype)


def cell_features(hidden: Tensor, unit: int) -> Tensor:
    """Mean of each cell's patches, [cells * unit, 1, width] to float32 [cells, width]."""
    return hidden.view(len(hidden) // unit, unit, -1).float().mean(1)
