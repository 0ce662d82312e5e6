"""Grids, pixel digests and kept tokens of recent media items, by their cache keys, in the API process."""

from __future__ import annotations

import threading

import torch
from cachetools import LRUCache
from torch import Tensor

from ...grid import Grid, Modality
from ..strategies.base import Cells
from ..strategies.maths import cells_of

# A Qwen-VL patch is laid out channel by channel.
CHANNELS = 3
MOST_BITMAP_CHARACTERS = 16 << 20


class ItemCache:
    """What is known of recent items, by the item's cache key; bounded, and safe to share between threads."""

    def __init__(self) -> None:
        self._grids: LRUCache[str, Grid] = LRUCache(65536)
        self._modalities: LRUCache[str, Modality] = LRUCache(65536)
        self._cells: LRUCache[str, Cells] = LRUCache(256)
        self._kept: LRUCache[str, str] = LRUCache(MOST_BITMAP_CHARACTERS, getsizeof=len)
        self._lock = threading.Lock()

    def kept(self, key: str) -> str | None:
        """Kept tokens of an item under a budget, as `grid.bitmap` has them; None when they are not remembered.

        Args:
            key: cache key of the item under its budget.
        """
        with self._lock:
            return self._kept.get(key)

    def keep_kept(self, key: str, bitmap: str) -> None:
        """Remember the kept tokens of an item that were chosen in this process."""
        with self._lock:
            if len(bitmap) <= self._kept.maxsize:
                self._kept[key] = bitmap

    def grid(self, base: str) -> Grid | None:
        """Grid of a recent item, None when it is not remembered."""
        with self._lock:
            return self._grids.get(base)

    def keep_grid(self, base: str, grid: Grid) -> None:
        """Remember the grid of an item."""
        with self._lock:
            self._grids[base] = grid

    def modality(self, base: str) -> Modality | None:
        """Whose budget a recent item has, where its name among vLLM's modalities does not say it."""
        with self._lock:
            return self._modalities.get(base)

    def keep_modality(self, base: str, modality: Modality) -> None:
        """Remember whose budget an item has."""
        with self._lock:
            self._modalities[base] = modality

    def cells(self, base: str) -> Cells | None:
        """Pixel digests of a recent item, None when it is not remembered."""
        with self._lock:
            return self._cells.get(base)

    def keep_cells(self, base: str, patches: Tensor, per_cell: int, spread: float) -> Cells:
        """Compute and remember the pixel digests of an item, one per visual token.

        Args:
            base: the item's cache key.
            patches: processor output [patches, values]: raw bytes, or values that were normalised here.
            per_cell: patches per visual token.
            spread: the normalisation's standard deviation, as a share of the full range.
        """
        cells = cells_of(patches.reshape(len(patches) // per_cell, -1), per_cell, CHANNELS)
        # vLLM normalises on the device by default and then hands out bytes; a texture means the same either way.
        share = 1 / 255 if patches.dtype == torch.uint8 else spread
        cells = Cells(cells.digest, cells.texture * share)
        with self._lock:
            self._cells[base] = cells
        return cells
