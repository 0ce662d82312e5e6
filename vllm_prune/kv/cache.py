"""Rows of a paged cache, whatever its layout.

A row is the key and value of one token in one layer and KV head. Slots are block * block_size + offset, as
in vLLM; kernel blocks subdivide the manager's blocks, so a slot means the same in both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class UnknownLayout(RuntimeError):
    """The cache's layout could not be learned; KV eviction is refused."""


@dataclass(frozen=True)
class Blocks:
    """A run of rows in the cache: the blocks that hold it in order, and the int64 slot of each row."""

    ids: tuple[int, ...]
    slots: Tensor

    @classmethod
    def of(cls, ids: tuple[int, ...], rows: int, size: int, device: torch.device) -> Blocks:
        """The first `rows` slots of the given blocks of `size` slots."""
        starts = torch.tensor(ids, device=device) * size
        return cls(ids, (starts[:, None] + torch.arange(size, device=device)).flatten()[:rows])


class CacheRows(ABC):
    """Reads and moves rows of one attention layer."""

    @abstractmethod
    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the given slots.

        Args:
            slots: int64 [n].

        Returns:
            Two [H, n, D] tensors in the cache's dtype, copies.
        """

    @abstractmethod
    def write(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Write [H, n, D] keys and values to the given slots, int64 [n]."""

    def logits(self, queries: Tensor, slots: Tensor, scale: float) -> Callable[[], Tensor] | None:
        """The window's attention logits straight from the cache, where a kernel does that; None elsewhere."""
        return None

    def move(self, kept: Tensor, keys: Tensor, values: Tensor, source: Blocks, target: Blocks) -> None:
        """Put the kept rows of every head where the target says.

        Args:
            kept: int64 [H, C], ascending.
            keys, values: [H, L, D] as `read` gave them.
            source: where the L rows lie.
            target: where the C rows go.
        """
        take = kept[:, :, None].expand(-1, -1, keys.shape[2])
        self.write(keys.gather(1, take), values.gather(1, take), target.slots)


class StridedRows(CacheRows):
    """FlashAttention, FlashInfer and Triton: a logical [blocks, H, block_size, 2 * D] view, any strides.

    Args:
        layer: vLLM's attention layer.
    """

    def __init__(self, layer: Any) -> None:
        self.cache: Tensor = layer.kv_cache
        self.size = int(self.cache.shape[2])
        self.heads = torch.arange(self.cache.shape[1], device=self.cache.device)

    def _at(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (slots // self.size)[None], self.heads[:, None], (slots % self.size)[None]

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """See `CacheRows`."""
        keys, values = self.cache[self._at(slots)].chunk(2, dim=-1)
        return keys, values

    def write(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """See `CacheRows`."""
        self.cache[self._at(slots)] = torch.cat([keys, values], dim=-1)

    def _suits_kernels(self) -> bool:
        width = self.cache.shape[3]
        return self.cache.is_cuda and self.cache.stride(3) == 1 and width & (width - 1) == 0

    def logits(self, queries: Tensor, slots: Tensor, scale: float) -> Callable[[], Tensor] | None:
        """See `CacheRows`."""
        if not self._suits_kernels():
            return None
        from . import kernels

        return lambda: kernels.window_logits(queries, self.cache, slots, scale)

    def move(self, kept: Tensor, keys: Tensor, values: Tensor, source: Blocks, target: Blocks) -> None:
        """In place by one kernel, where the blocks allow it and rows have a size that it takes."""
        if self._suits_kernels():
            from . import kernels

            if kernels.walks_in_place(source.ids, target.ids):
                kernels.compact(self.cache, kept, source.slots, target.slots)
                return
        super().move(kept, keys, values, source, target)


class PackedRows(CacheRows):
    """vLLM's CPU cache, packed by instruction set: the order inside a block is learned by writing coded rows.

    Args:
        layer: vLLM's attention layer.
        order: the layout as `learn_order` found it; layers of one model share it.
    """

    def __init__(self, layer: Any, order: Tensor) -> None:
        self.layer = layer
        self.cache: Tensor = layer.kv_cache
        self.order = order

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """See `CacheRows`."""
        _, heads, size, _ = self.cache.shape
        blocks, places = torch.unique(slots // size, return_inverse=True)
        raw = self.cache[blocks].reshape(len(blocks), heads, -1)
        rows = places * size + slots % size
        keys, values = (self._unpack(raw, half, rows) for half in self.order)
        return keys, values

    def _unpack(self, raw: Tensor, half: Tensor, rows: Tensor) -> Tensor:
        count, heads, _ = raw.shape
        size, dim = half.shape
        unpacked = raw.index_select(2, half.flatten()).view(count, heads, size, dim)
        return unpacked.transpose(0, 1).reshape(heads, count * size, dim).index_select(1, rows)

    def write(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """See `CacheRows`."""
        self.layer.impl.do_kv_cache_update(
            self.layer,
            keys.transpose(0, 1).contiguous(),
            values.transpose(0, 1).contiguous(),
            self.cache,
            slots,
        )


def learn_order(layer: Any) -> Tensor:
    """Where each element of a block's keys and values lies in memory.

    Coded rows are written through the layer's own update into a cache of one block, digit by digit in
    base 128, which every cache dtype holds exactly; reading the raw block back gives the order.

    Args:
        layer: vLLM's attention layer, its cache bound.

    Returns:
        int64 [2, block_size, D]: for keys and for values, the place of (row, element) in the flat block of a head.

    Raises:
        UnknownLayout: the update is no permutation, or differs between heads.
    """
    _, heads, size, width = layer.kv_cache.shape
    dim = width // 2
    codes = torch.arange(2 * size * dim).view(2, size, dim)
    found = torch.zeros(heads, size * width, dtype=torch.int64)
    slots = torch.arange(size)
    for place in range(3):
        block = torch.zeros(1, heads, size, width, dtype=layer.kv_cache.dtype)
        digit = (codes // 128**place % 128).to(block.dtype)
        keys, values = (half[:, None].expand(size, heads, dim).contiguous() for half in digit)
        layer.impl.do_kv_cache_update(layer, keys, values, block, slots)
        found += block.view(heads, -1).to(torch.int64) * 128**place
    if not torch.equal(found.sort(dim=1).values, codes.flatten().expand_as(found)) or (found != found[0]).any():
        raise UnknownLayout("the attention backend packs cached rows in a way that could not be learned")
    order = torch.empty(codes.numel(), dtype=torch.int64)
    order[found[0]] = torch.arange(codes.numel())
    return order.view_as(codes)


def open_rows(layers: list[Any]) -> list[CacheRows]:
    """Row access for the attention layers of a model.

    Raises:
        UnknownLayout: a layout that could not be learned.
    """
    if layers[0].kv_cache.device.type != "cpu":
        return [StridedRows(layer) for layer in layers]
    order = learn_order(layers[0])
    return [PackedRows(layer, order) for layer in layers]
