"""What one item of a request has been granted, and what the front end remembers about items."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor

from ..allocation import ItemBudget
from .ops import cells_of
from .strategies import Cells, Grid
from .strategies.base import Modality

# A Qwen-VL patch is laid out channel by channel.
CHANNELS = 3


@dataclass(frozen=True)
class Grant:
    """Budget of one item together with what its row needs.

    Attributes:
        budget: None where the item keeps everything.
        base: the item's hash without a budget.
        earlier: base hashes of the items before it, for strategies that compare items.
        patches_of: gives the processor output of an earlier item that was served from a cache.
    """

    budget: ItemBudget | None
    base: str
    earlier: tuple[str, ...] = ()
    patches_of: Callable[[int], Any] | None = field(default=None, compare=False, repr=False)

    @property
    def seed(self) -> int:
        """63-bit number from the item's content."""
        return int.from_bytes(hashlib.blake2b(self.base.encode(), digest_size=8).digest(), "big") >> 1

    @property
    def key(self) -> str:
        """Cache key of the item under this grant; the parent's own where nothing is pruned."""
        if self.budget is None:
            return self.base
        text = "|".join([self.budget.key(), *self.earlier])
        return f"{self.base}-{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}"


Grants = dict[Modality, list[Grant]]


class ItemMemory:
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
