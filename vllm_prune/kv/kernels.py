"""Triton kernels for CUDA caches; each has a torch twin that says what it computes.

`window_logits` scores cached keys against the observation window where they lie, without gathering them.
`compact` moves the kept rows of a request, in place where the blocks allow it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 32


@triton.jit
def _window_logits(  # type: ignore[no-untyped-def]
    queries, cache, slots, out, rows, first, window, group_rows, block_size, scale,
    query_row, cache_block, cache_head, cache_slot, out_head, out_row,
    DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # What requests choose is no constant here, or every new window would be compiled in the middle of a step.
    head, tile = tl.program_id(0), tl.program_id(1)
    row = tile * TILE + tl.arange(0, TILE)
    inside = row < rows
    slot = tl.load(slots + row, mask=inside, other=0)
    place = (slot // block_size) * cache_block + head * cache_head + (slot % block_size) * cache_slot
    element = tl.arange(0, DIM)
    keys = tl.load(cache + place[:, None] + element[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    for observed in range(group_rows):
        query = tl.load(queries + (head * group_rows + observed) * query_row + element).to(tl.float32)
        logits = tl.sum(keys * query[None, :], axis=1) * scale
        last = first + observed % window
        logits = tl.where(row <= last, logits, float("-inf"))
        tl.store(out + head * out_head + observed * out_row + row, logits, mask=inside)


def window_logits(queries: Tensor, cache: Tensor, slots: Tensor, scale: float, first: int) -> Tensor:
    """Causal attention logits of consecutive queries over a request's cached rows.

    Args:
        queries: [n, H * G, D], after rotary embedding.
        cache: [blocks, H, block_size, 2 * D], any strides, keys in the first half of the last axis.
        slots: int64 [L], where the request's rows lie.
        scale: factor of the logits.
        first: row of the first query; the others follow.

    Returns:
        float32 [H, G, n, L], minus infinity where a query comes before a row.
    """
    window, heads, dim = len(queries), cache.shape[1], cache.shape[3] // 2
    rows = len(slots)
    grouped = queries.reshape(window, heads, -1, dim).permute(1, 2, 0, 3).reshape(-1, dim).contiguous()
    group_rows = len(grouped) // heads
    out = torch.empty(heads, group_rows, rows, dtype=torch.float32, device=cache.device)
    _window_logits[(heads, triton.cdiv(rows, TILE))](
        grouped, cache, slots, out, rows, first, window, group_rows, cache.shape[2], scale,
        grouped.stride(0), cache.stride(0), cache.stride(1), cache.stride(2), out.stride(0), out.stride(1),
        DIM=dim, TILE=TILE,
    )  # fmt: skip
    return out.view(heads, -1, window, rows)


def window_logits_torch(queries: Tensor, cache: Tensor, slots: Tensor, scale: float, first: int) -> Tensor:
    """Twin of `window_logits`."""
    window, heads, dim = len(queries), cache.shape[1], cache.shape[3] // 2
    size = cache.shape[2]
    keys = cache[slots // size, :, slots % size, :dim].transpose(0, 1).float()
    grouped = queries.reshape(window, heads, -1, dim).permute(1, 2, 0, 3).float()
    logits = grouped @ keys[:, None].transpose(-1, -2) * scale
    row = torch.arange(len(slots), device=cache.device)
    return logits.masked_fill(row > row[first : first + window, None], float("-inf"))


@triton.jit
def _compact(  # type: ignore[no-untyped-def]
    cache, kept, source, target, count, block_size,
    cache_block, cache_head, cache_slot, kept_head,
    WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    element = tl.arange(0, WIDTH)
    # One program per head walks its rows in order, so that a tile is read before anything overwrites it.
    for start in range(0, count, TILE):
        row = start + tl.arange(0, TILE)
        inside = row < count
        taken = tl.load(kept + head * kept_head + row, mask=inside, other=0)
        old = tl.load(source + taken, mask=inside, other=0)
        new = tl.load(target + row, mask=inside, other=0)
        base = cache + head * cache_head
        old_place = (old // block_size) * cache_block + (old % block_size) * cache_slot
        new_place = (new // block_size) * cache_block + (new % block_size) * cache_slot
        moved = tl.load(base + old_place[:, None] + element[None, :], mask=inside[:, None], other=0.0)
        tl.debug_barrier()
        tl.store(base + new_place[:, None] + element[None, :], moved, mask=inside[:, None])
        tl.debug_barrier()


def compact(cache: Tensor, kept: Tensor, source: Tensor, target: Tensor) -> None:
    """Move the kept rows of every head from their slots to the target slots, without a copy in between.

    Args:
        cache: [blocks, H, block_size, 2 * D], last axis contiguous, other strides any.
        kept: int64 [H, C], ascending rows of the request.
        source: int64 [L], slots of the request's rows.
        target: int64 [C], slots that take the kept rows; see `safe_in_place`.
    """
    width = cache.shape[3]
    if cache.stride(3) != 1 or width & (width - 1):
        raise ValueError(f"rows of {width} elements with stride {cache.stride(3)} cannot be moved by the kernel")
    kept = kept.contiguous()
    _compact[(cache.shape[1],)](
        cache, kept, source, target, kept.shape[1], cache.shape[2],
        cache.stride(0), cache.stride(1), cache.stride(2), kept.stride(0),
        WIDTH=width, TILE=TILE,
    )  # fmt: skip


def compact_torch(cache: Tensor, kept: Tensor, source: Tensor, target: Tensor) -> None:
    """Twin of `compact`, with a copy of the kept rows in between; blocks may overlap in any way."""
    size, heads = cache.shape[2], torch.arange(cache.shape[1], device=cache.device)[:, None]
    old = source[kept]
    moved = cache[old // size, heads, old % size]
    cache[(target // size)[None], heads, (target % size)[None]] = moved


def safe_in_place(source: Sequence[int], target: Sequence[int]) -> bool:
    """Whether rows can be moved in ascending order without a copy.

    Kept rows ascend, so row i of the target comes from row i or later. A target block that is the m-th
    source block may therefore be overwritten once the rows in it have moved: m <= its own index.
    """
    place = {block: m for m, block in enumerate(source)}
    return all(place.get(block, 0) <= k for k, block in enumerate(target))
