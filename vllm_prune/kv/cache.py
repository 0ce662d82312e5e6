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
from vllm.utils.torch_utils import async_tensor_h2d

from .packed_layout import StridedLayout, learn_order, scatter_back

KEYS, VALUES = 0, 1
"""The halves of a row, in the order in which caches hold them."""
FEW = 4
"""Rows are read one by one where at most one in so many is read; whole blocks are faster by about that."""


@dataclass(frozen=True)
class Blocks:
    """A run of rows in the cache.

    Attributes:
        ids: blocks that hold it, in order.
        size: slots of a block.
        slots: int64 slot of each row, on the cache's device.
    """

    ids: tuple[int, ...]
    size: int
    slots: Tensor

    @classmethod
    def of(cls, ids: tuple[int, ...], rows: int, size: int, device: torch.device) -> Blocks:
        """The first `rows` slots of the given blocks of `size` slots."""
        starts = async_tensor_h2d(list(ids), device=device, dtype=torch.int64) * size
        return cls(ids, size, (starts[:, None] + torch.arange(size, device=device)).flatten()[:rows])


class CacheRows(ABC):
    """Reads and moves rows of one attention layer.

    Attributes:
        cache: vLLM's, as [blocks, H, block_size, 2 * D].
    """

    cache: Tensor

    @abstractmethod
    def read(self, source: Blocks, half: int) -> Tensor:
        """Keys or values of a run of n rows, [H, n, D] in the cache's dtype, a copy.

        Args:
            source: where the rows lie.
            half: `KEYS` or `VALUES`.
        """

    def read_into(self, source: Blocks, half: int, memory: Tensor) -> None:
        """The same into memory.

        Args:
            source: where the n rows lie.
            half: `KEYS` or `VALUES`.
            memory: [H, N, D] in the cache's dtype; N slots are those of the run's blocks, n of them in use.
        """
        rows = self.read(source, half)
        memory[:, : rows.shape[1]] = rows

    def kept_values(self, source: Blocks, kept: Tensor) -> Tensor:
        """Values of some rows of each head.

        Args:
            source: where the L rows lie.
            kept: int64 [H, C], which of them.

        Returns:
            [H, C, D] in the cache's dtype, a copy.
        """
        return _rows(self.read(source, VALUES), kept)

    @abstractmethod
    def write(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Write [H, n, D] keys and values to the given slots, int64 [n]."""

    def clear(self, slots: Tensor, like: Tensor) -> None:
        """Write zeros to the given slots, int64 [n].

        Args:
            slots: where.
            like: [H, any, D] rows of the cache, for their heads, size, dtype and device.
        """
        zeros = like.new_zeros(len(like), len(slots), like.shape[2])
        self.write(zeros, zeros, slots)

    def logits(self, queries: Tensor, slots: Tensor, scale: float) -> Callable[[slice, slice], Tensor] | None:
        """A window's attention logits straight from the cache, where a kernel does that; None elsewhere.

        Args:
            queries: [W, H * G, D] float32 of the last W rows.
            slots: int64 [L], where the request's rows lie.
            scale: factor of the logits.

        Returns:
            What `LayerView.logits` takes.
        """
        return None

    def move(self, kept: Tensor, keys: Tensor, values: Tensor | None, source: Blocks, target: Blocks) -> None:
        """Put the kept rows of every head where the target says.

        Args:
            kept: int64 [H, C], ascending.
            keys: [H, L, D] as `read` gave them.
            values: the same of values; None where they have not been read.
            source: where the L rows lie.
            target: where the C rows go.
        """
        chosen = self.kept_values(source, kept) if values is None else _rows(values, kept)
        self.write(_rows(keys, kept), chosen, target.slots)


def _rows(tensor: Tensor, kept: Tensor) -> Tensor:
    """Rows of each head: [H, L, D] and int64 [H, C] to [H, C, D]. Copies whole rows, which `gather` does not.

    In memory heads lie inside of rows, as caches take them.
    """
    heads, rows, dim = tensor.shape
    if tensor.stride()[1:] != (dim, 1) or tensor.stride(0) % dim:
        tensor = tensor.contiguous()
    # A head may be followed by rows that are not among them.
    apart = tensor.stride(0) // dim
    flat = tensor.as_strided(((heads - 1) * apart + rows, dim), (dim, 1))
    starts = torch.arange(heads, device=kept.device)[:, None] * apart
    return flat.index_select(0, (kept + starts).t().flatten()).view(-1, heads, dim).transpose(0, 1)


class StridedRows(CacheRows):
    """FlashAttention, FlashInfer and Triton: a logical [blocks, H, block_size, 2 * D] view, any strides.

    Args:
        layer: vLLM's attention layer.
    """

    def __init__(self, layer: Any) -> None:
        self.cache = layer.kv_cache
        self.size = int(self.cache.shape[2])
        self.heads = torch.arange(self.cache.shape[1], device=self.cache.device)

    def _at(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Index of slots, int64 [n] for all heads or [H, n]."""
        return slots // self.size, self.heads[:, None], slots % self.size

    def _of(self, half: int, slots: Tensor) -> Tensor:
        return self.cache.chunk(2, dim=-1)[half][self._at(slots)]

    def read(self, source: Blocks, half: int) -> Tensor:
        """See `CacheRows`."""
        return self._of(half, source.slots)

    def kept_values(self, source: Blocks, kept: Tensor) -> Tensor:
        """See `CacheRows`."""
        return self._of(VALUES, source.slots[kept])

    def write(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """See `CacheRows`."""
        self.cache[self._at(slots)] = torch.cat([keys, values], dim=-1)

    def _suits_kernels(self) -> bool:
        width = self.cache.shape[3]
        return self.cache.is_cuda and self.cache.stride(3) == 1 and width & (width - 1) == 0

    def logits(self, queries: Tensor, slots: Tensor, scale: float) -> Callable[[slice, slice], Tensor] | None:
        """See `CacheRows`."""
        if not self._suits_kernels():
            return None
        from . import kernels

        by_head = queries.unflatten(1, (len(self.heads), -1))
        first = len(slots) - len(queries)

        def logits(heads: slice, window: slice) -> Tensor:
            part = by_head[window, heads].flatten(1, 2)
            return kernels.window_logits(part, self.cache[:, heads], slots, scale, first + (window.start or 0))

        return logits

    def move(self, kept: Tensor, keys: Tensor, values: Tensor | None, source: Blocks, target: Blocks) -> None:
        """In place by one kernel, where the blocks allow it and rows have a size that it takes."""
        if self._suits_kernels():
            from . import kernels

            if kernels.safe_in_place(source.ids, target.ids):
                kernels.compact(self.cache, kept, source.slots, target.slots)
                return
        super().move(kept, keys, values, source, target)


class PackedRows(CacheRows):
    """vLLM's CPU cache, packed by instruction set: the order inside a block is learned by writing coded rows.

    Args:
        layer: vLLM's attention layer.
        order: what `learn_order` returned; layers of one model share it.
    """

    def __init__(self, layer: Any, order: Tensor) -> None:
        self.layer = layer
        self.cache = layer.kv_cache
        self.order = order
        self.layouts = [StridedLayout.of(half) for half in order]

    def read(self, source: Blocks, half: int) -> Tensor:
        """See `CacheRows`."""
        rows, (_, heads, size, width) = len(source.slots), self.cache.shape
        memory = self.cache.new_empty(heads, -(-rows // size) * size, width // 2)
        self.read_into(source, half, memory)
        return memory[:, :rows]

    def read_into(self, source: Blocks, half: int, memory: Tensor) -> None:
        """See `CacheRows`."""
        size, layout = self.cache.shape[2], self.layouts[half]
        # The first slot of each of the kernel's blocks, several of which make one of the manager's.
        blocks = source.slots[::size] // size
        filled = memory[:, : len(blocks) * size]
        if layout is None:
            filled.copy_(scatter_back(self.cache[blocks].flatten(2), self.order[half]))
        else:
            layout.unpack(self.cache, blocks, filled, size)

    def kept_values(self, source: Blocks, kept: Tensor) -> Tensor:
        """See `CacheRows`."""
        layout, size = self.layouts[VALUES], self.cache.shape[2]
        if layout is None or kept.shape[1] * FEW > len(source.slots):
            return super().kept_values(source, kept)
        slots = source.slots[kept]
        return layout.pick(self.cache, slots // size, slots % size)

    def write(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """See `CacheRows`."""
        self.layer.impl.do_kv_cache_update(
            self.layer,
            keys.transpose(0, 1).contiguous(),
            values.transpose(0, 1).contiguous(),
            self.cache,
            slots,
        )


def open_rows(layers: list[Any]) -> list[CacheRows]:
    """Row access for the attention layers of a model.

    Raises:
        UnknownLayout: a layout that could not be learned.
    """
    if layers[0].kv_cache.device.type != "cpu":
        return [StridedRows(layer) for layer in layers]
    order = learn_order(layers[0])
    return [PackedRows(layer, order) for layer in layers]
