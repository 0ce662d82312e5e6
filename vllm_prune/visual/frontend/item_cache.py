"""What the front end remembers of recent media items: grids and pixel digests, by content hash."""

from __future__ import annotations

import threading

import torch
from cachetools import LRUCache
from torch import Tensor

from ...grid import Grid
from ..strategies.base import Cells
from ..strategies.maths import cells_of

# A Qwen-VL patch is laid out channel by channel.
CHANNELS = 3


class ItemCache:
    """Grids and cell digests of recent items, by the item's hash; small, and shared by all threads."""

    def __init__(self) -> None:
        self._grids: LRUCache[str, Grid] = LRUCache(65536)
        self._cells: LRUCache[str, Cells] = LRUCache(256)
        self._lock = threading.Lock()

    def grid(self, base: str) -> Grid | None:
        """Grid of an item that was processed lately."""
        with self._lock:
            return self._grids.get(base)

    def keep_grid(self, base: str, grid: Grid) -> None:
        """Remember an item's grid."""
        with self._lock:
            self._grids[base] = grid

    def cells(self, base: str) -> Cells | None:
        """Cells of an item that was processed lately."""
        with self._lock:
            return self._cells.get(base)

    def keep_cells(self, base: str, patches: Tensor, per_cell: int, spread: float) -> Cells:
        """Compute and remember an item's cells.

        Args:
            base: the item's hash.
            patches: processor output [patches, values]: raw bytes, or values that were normalised here.
            per_cell: patches per cell.
            spread: the normalisation's standard deviation, as a share of the full range.
        """
        cells = cells_of(patches.reshape(len(patches) // per_cell, -1), per_cell, CHANNELS)
        # vLLM normalises on the device by default and then hands out bytes; a texture means the same either way.
        share = 1 / 255 if patches.dtype == torch.uint8 else spread
        cells = Cells(cells.digest, cells.texture * share)
        with self._lock:
            self._cells[base] = cells
        return cells
