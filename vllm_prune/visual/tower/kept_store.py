"""Which visual tokens of recent items were kept, in the process that chose them."""

from __future__ import annotations

from dataclasses import dataclass

from cachetools import LRUCache
from torch import Tensor

from ...grid import bitmap

MOST_BYTES = 32 << 20
"""Four million kept tokens: more than an encoder cache and the prefix cache of one device hold together."""


@dataclass(frozen=True)
class _Kept:
    """Kept cells of an item, int64 [K], and the number of its cells, M."""

    cells: Tensor
    tokens: int


class KeptStore:
    """Kept cells by `ItemPlan.key`, least recently encoded or read first to go.

    An item that the encoder cache or the prefix cache answers is not encoded again, so what was kept of it has to be
    remembered for as long. Tensors stay on their device: remembering one computes and copies nothing.

    Args:
        most_bytes: of all tensors together.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._items: LRUCache[str, _Kept] = LRUCache(most_bytes, getsizeof=lambda kept: kept.cells.nbytes)

    def remember(self, key: str, cells: Tensor, tokens: int) -> None:
        """Take what was kept of an item that has been encoded.

        Args:
            key: the plan's; nothing is taken without one.
            cells: int64 [K], kept cells; must not be changed later.
            tokens: cells of the item, M.
        """
        if key and cells.nbytes <= self._items.maxsize:
            self._items[key] = _Kept(cells, tokens)

    def bitmap(self, key: str) -> str | None:
        """Kept cells as `grid.bitmap` has them, None when they are not remembered. Waits for the device."""
        kept = self._items.get(key)
        return None if kept is None else bitmap(kept.cells.tolist(), kept.tokens)


KEPT = KeptStore()
"""That of this worker process."""
