"""The order of rows and elements in a block of vLLM's CPU cache, which is packed by instruction set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

RUN = 128
"""Blocks one after the other are read where they lie if they hold so many rows on average; others are gathered."""
WIDER = {1: torch.int16, 2: torch.int32, 4: torch.int64}
"""By bytes of an element, the type that two of them fill."""


class UnknownLayout(RuntimeError):
    """The cache's layout could not be learned; KV eviction is refused."""


@dataclass(frozen=True)
class StridedLayout:
    """A block's order as nested loops of fixed strides, several times faster to read than element by element.

    Attributes:
        start: place of the first row's first element.
        sizes: repetitions of each loop, outermost first, loops over rows before loops over elements.
        strides: distance in elements between two repetitions of each loop.
    """

    start: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, half: Tensor) -> StridedLayout | None:
        """The layout of one half of `learn_order`'s answer; None for an order that is not of this form."""
        rows, elements = _nested_strides(half[:, 0].tolist()), _nested_strides(half[0].tolist())
        if not torch.equal(half, half[:, :1] + half[:1] - half[0, 0]) or rows is None or elements is None:
            return None
        sizes, strides = zip(*rows, *elements, strict=True)
        return cls(int(half[0, 0]), sizes, strides)

    def unpack(self, cache: Tensor, blocks: Tensor, memory: Tensor, size: int) -> None:
        """Read blocks.

        Args:
            cache: [all blocks, H, block_size, 2 * D].
            blocks: int64 [n].
            memory: [H, n * block_size, D], whose rows are contiguous.
            size: block_size.
        """
        if self._in_pairs() and cache.itemsize in WIDER:
            wider = WIDER[cache.itemsize]
            self._halved().unpack(cache.view(wider), blocks, memory.view(wider), size)
            return
        numbers, heads, done = blocks.tolist(), cache.shape[1], 0
        runs = _runs(numbers)
        if len(runs) * RUN > len(numbers) * size:
            cache = cache.view(len(cache), -1).index_select(0, blocks).unflatten(1, cache.shape[1:])
            runs = [(0, len(numbers))]
        places = self._places(cache)
        for first, count in runs:
            part = memory[:, done * size : (done + count) * size].unflatten(1, (count, size))
            part.view(heads, count, *self.sizes).copy_(places[first : first + count].transpose(0, 1))
            done += count

    def pick(self, cache: Tensor, blocks: Tensor, offsets: Tensor) -> Tensor:
        """Read single rows of each head.

        Args:
            cache: [all blocks, H, block_size, 2 * D].
            blocks: int64 [H, C], the block of each row.
            offsets: int64 [H, C], its place in there.

        Returns:
            [H, C, D]; in memory heads lie inside of rows.
        """
        size, heads = cache.shape[2], torch.arange(cache.shape[1], device=cache.device)
        loops, repeated = [], size
        for number in self.sizes:
            if repeated == 1:
                break
            repeated //= number
            loops.append(offsets.t() // repeated % number)
        rows = self._places(cache)[(blocks.t(), heads, *loops)]
        return rows.flatten(2).transpose(0, 1)

    def _places(self, cache: Tensor) -> Tensor:
        """The cache as [all blocks, H, *sizes], a view."""
        flat = cache.view(*cache.shape[:2], -1)
        start = flat.storage_offset() + self.start
        return flat.as_strided((*flat.shape[:2], *self.sizes), (*flat.stride()[:2], *self.strides), start)

    def _in_pairs(self) -> bool:
        """Whether elements lie two by two, so that two can be read as one."""
        even = all(number % 2 == 0 for number in (self.start, *self.strides[:-1]))
        return (self.sizes[-1], self.strides[-1]) == (2, 1) and even

    def _halved(self) -> StridedLayout:
        return StridedLayout(self.start // 2, self.sizes[:-1], tuple(stride // 2 for stride in self.strides[:-1]))


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers: the first of each, and how many there are."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs


def _nested_strides(places: list[int]) -> list[tuple[int, int]] | None:
    """Write a sequence as nested loops (repetitions, stride), outermost first; None if it is not of that form."""
    loops, period = [], 1
    while period < len(places):
        stride, count = places[period] - places[0], 1
        while (count + 1) * period <= len(places) and all(
            places[count * period + i] == places[i] + count * stride for i in range(period)
        ):
            count += 1
        while len(places) % (count * period):
            count -= 1
        if count == 1:
            return None
        loops.append((count, stride))
        period *= count
    return loops[::-1] or [(1, 0)]


def scatter_back(raw: Tensor, half: Tensor) -> Tensor:
    """One half of [blocks, H, block_size * 2 * D] blocks as [H, blocks * block_size, D], element by element."""
    count, heads, _ = raw.shape
    size, dim = half.shape
    unpacked = raw.index_select(2, half.flatten()).view(count, heads, size, dim)
    return unpacked.transpose(0, 1).reshape(heads, count * size, dim)


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
    written = torch.zeros(heads, size * width, dtype=torch.int64)
    slots = torch.arange(size)
    for place in range(3):
        block = torch.zeros(1, heads, size, width, dtype=layer.kv_cache.dtype)
        digit = (codes // 128**place % 128).to(block.dtype)
        keys, values = (half[:, None].expand(size, heads, dim).contiguous() for half in digit)
        layer.impl.do_kv_cache_update(layer, keys, values, block, slots)
        written += block.view(heads, -1).to(torch.int64) * 128**place
    if not torch.equal(written.sort(dim=1).values, codes.flatten().expand_as(written)) or (written != written[0]).any():
        raise UnknownLayout("the attention backend packs cached rows in a way that could not be learned")
    order = torch.empty(codes.numel(), dtype=torch.int64)
    order[written[0]] = torch.arange(codes.numel())
    return order.view_as(codes)
