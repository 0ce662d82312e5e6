"""Rows of paged caches: CUDA's strided layouts as plain tensors, and vLLM's own packed CPU layouts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_prune.kv.cache import KEYS, VALUES, Blocks, CacheRows, PackedRows, StridedRows
from vllm_prune.kv.packed_layout import UnknownLayout, learn_order

BLOCKS, HEADS, DIM = 6, 2, 32


class CpuUpdate:
    """The update of vLLM's CPU attention for one instruction set; the operator is vLLM's."""

    def do_kv_cache_update(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor
    ) -> None:
        import vllm._custom_ops as ops

        blocks, heads, size, _ = cache.shape
        keys, values = cache.view(blocks, heads, 2 * size, -1).chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(
            key, value, keys, values, slots, layer.isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto"
        )


def packed(dtype: torch.dtype, isa: str, size: int) -> PackedRows:
    cache = torch.zeros(BLOCKS, HEADS, size, 2 * DIM, dtype=dtype)
    layer = SimpleNamespace(kv_cache=cache, impl=CpuUpdate(), isa=isa)
    return PackedRows(layer, learn_order(layer))


def strided(order: str) -> StridedRows:
    base = torch.zeros(BLOCKS, HEADS, 16, 2 * DIM)
    views = {
        "by head": base,
        "by slot": base.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3),
        "with a gap": torch.zeros(BLOCKS, 2, HEADS, 16, 2 * DIM)[:, 1],
    }
    return StridedRows(SimpleNamespace(kv_cache=views[order]))


CASES = ["by head", "by slot", "with a gap", "float32 vec", "float32 vec16", "bfloat16 vec", "bfloat16 amx"]


@pytest.fixture(params=CASES)
def rows(request: pytest.FixtureRequest) -> CacheRows:
    torch.manual_seed(0)
    if request.param in CASES[:3]:
        return strided(request.param)
    dtype, isa = request.param.split()
    if isa == "amx" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("no AMX on this machine")
    return packed(getattr(torch, dtype), isa, 16 if isa == "vec16" else 32)


def fill(rows: Any, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(2, HEADS, len(slots), DIM).to(rows.cache.dtype)
    rows.write(keys, values, slots)
    return keys, values


def read(rows: CacheRows, where: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.read(where, KEYS), rows.read(where, VALUES)


def test_every_layout_of_vllms_is_strided(rows: Any) -> None:
    if isinstance(rows, PackedRows):
        assert None not in rows.layouts


def test_what_is_written_is_read(rows: Any) -> None:
    size = rows.cache.shape[2]
    where = Blocks.of((4, 1, 3), 2 * size + 5, size, torch.device("cpu"))
    keys, values = fill(rows, where.slots)
    got = read(rows, where)
    assert torch.equal(got[0], keys)
    assert torch.equal(got[1], values)


def test_blocks_of_the_manager_may_span_several_of_the_kernel(rows: Any) -> None:
    size, device = rows.cache.shape[2], torch.device("cpu")
    where = Blocks.of((2, 0), 3 * size + 1, 2 * size, device)
    keys, values = fill(rows, where.slots)
    got = read(rows, where)
    assert torch.equal(got[0], keys)
    assert torch.equal(got[1], values)
    assert torch.equal(rows.read(Blocks.of((4,), size, size, device), KEYS), keys[:, :size])


@pytest.mark.parametrize("form", ["loops", "crossed", "shuffled"])
def test_any_order_inside_a_block_is_read_back(form: str) -> None:
    size, dim = 8, 6
    places = torch.arange(2 * size * dim)
    if form == "loops":
        order = places.view(2, 2, 4, 3, 2).permute(0, 2, 1, 4, 3).reshape(2, size, dim)
    else:
        order = places[torch.randperm(len(places))].view(2, size, dim)
        if form == "crossed":  # rows and elements walk evenly by themselves, not together
            order[0] = torch.arange(size * dim).view(size, dim)
            order[0, 3] = order[0, 3].flip(0)
            order[1] = size * dim + torch.arange(size * dim).view(size, dim)
    cache = torch.randn(5, HEADS, size, 2 * dim)
    packed_rows = PackedRows(SimpleNamespace(kv_cache=cache), order)
    assert (packed_rows.layouts[0] is not None) == (form == "loops")
    got = read(packed_rows, Blocks.of((3, 0, 4), 2 * size + 3, size, torch.device("cpu")))
    for half, found in zip(order, got, strict=True):
        for row in range(2 * size + 3):
            block = (3, 0, 4)[row // size]
            assert torch.equal(found[:, row], cache[block].flatten(1)[:, half[row % size]])


@pytest.mark.parametrize("looked_at", [True, False])
@pytest.mark.parametrize("target", [(5, 2), (4, 1), (3, 4), (1, 5)])
def test_moved_rows_are_the_kept_ones_and_nothing_else_changes(
    rows: Any, target: tuple[int, ...], looked_at: bool
) -> None:
    size, device = rows.cache.shape[2], torch.device("cpu")
    everything = Blocks.of(tuple(range(BLOCKS)), BLOCKS * size, size, device)
    fill(rows, everything.slots)
    source = Blocks.of((4, 1, 3), 2 * size + 5, size, device)
    goal = Blocks.of(target, size + 3, size, device)
    before, (keys, values) = read(rows, everything), read(rows, source)
    kept = torch.stack([torch.randperm(2 * size + 5)[: size + 3].sort().values for _ in range(HEADS)])
    rows.move(kept, keys, values if looked_at else None, source, goal)
    take = kept[:, :, None].expand(-1, -1, DIM)
    got = read(rows, goal)
    assert torch.equal(got[0], keys.gather(1, take))
    assert torch.equal(got[1], values.gather(1, take))
    others = torch.ones(len(everything.slots), dtype=torch.bool)
    others[goal.slots] = False
    for one, two in zip(before, read(rows, everything), strict=True):
        assert torch.equal(one[:, others], two[:, others])


def test_an_update_that_is_no_permutation_is_refused() -> None:
    class Lossy(CpuUpdate):
        def do_kv_cache_update(self, layer: Any, key: Any, value: Any, cache: Any, slots: Any) -> None:
            super().do_kv_cache_update(layer, key, key, cache, slots)

    layer = SimpleNamespace(kv_cache=torch.zeros(2, HEADS, 32, 2 * DIM), impl=Lossy(), isa="vec")
    with pytest.raises(UnknownLayout, match="could not be learned"):
        learn_order(layer)


def test_cleared_slots_are_zero_whatever_they_held(rows: CacheRows) -> None:
    cache: torch.Tensor = rows.cache  # type: ignore[attr-defined]
    cache.fill_(float("nan"))
    size, device = cache.shape[2], torch.device("cpu")
    both = Blocks.of((4, 1), 2 * size, size, device)
    keys = torch.randn(HEADS, size + 3, DIM).to(cache.dtype)
    rows.write(keys, -keys, both.slots[: size + 3])
    rows.clear(both.slots[size + 3 :], keys)
    for sign, half in zip((1, -1), read(rows, both), strict=True):
        assert torch.equal(half[:, : size + 3], sign * keys)
        assert torch.equal(half[:, size + 3 :], torch.zeros_like(half[:, size + 3 :]))
