"""Run by `test_kernels.py`, under `TRITON_INTERPRET=1` where there is no GPU to compile for."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import torch

from vllm_prune.kv import kernels
from vllm_prune.kv.cache import StridedRows


class OnKernels(StridedRows):
    """Row access that takes the kernels on any device, as Triton's interpreter runs them on the CPU."""

    def _suits_kernels(self) -> bool:
        return True


def caches(heads: int, size: int, dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """The same content in the memory orders of vLLM's CUDA backends."""
    content = torch.randn(14, heads, size, 2 * dim).to(dtype)
    by_slot = content.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    wide = torch.zeros(14, 2, heads, size, 2 * dim, dtype=dtype)[:, 1]
    wide.copy_(content)
    return [content.clone(), by_slot, wide]


def slots(blocks: list[int], size: int, rows: int) -> torch.Tensor:
    """Slots of the first rows in the given blocks."""
    return (torch.tensor(blocks)[:, None] * size + torch.arange(size)).flatten()[:rows]


def window_logits() -> int:
    """All layouts, window lengths and group sizes."""
    checked = 0
    for heads, group, window, rows, dtype in (
        (1, 1, 1, 5, torch.float32),
        (2, 3, 8, 70, torch.float32),
        (2, 2, 5, 33, torch.bfloat16),
    ):
        for cache in caches(heads, 16, 32, dtype):
            queries = torch.randn(window, heads * group, 32).to(dtype)
            where = slots([3, 9, 0, 7, 11], 16, rows)
            got = kernels.window_logits(queries, cache, where, 0.3, rows - window)
            want = kernels.window_logits_torch(queries, cache, where, 0.3, rows - window)
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
            assert torch.isinf(want).any() == (window > 1)
            assert torch.isfinite(want[:, :, -1]).all()
            logits = OnKernels(SimpleNamespace(kv_cache=cache)).logits(queries, where, 0.3)
            assert logits is not None
            for some, part in ((slice(heads - 1, heads), slice(window // 2, window)), (slice(None), slice(0, 2))):
                torch.testing.assert_close(logits(some, part), want[some, :, part], rtol=1e-5, atol=1e-5)
            checked += 1
    return checked


def compact() -> int:
    """Moves in place and to other blocks, for heads that keep different rows."""
    checked = 0
    source = [3, 9, 0, 7, 11]
    for target in ([3, 9], [5, 6], [3, 12], [5, 3], [12, 9]):
        assert kernels.safe_in_place(source, target)
        for rows, count in ((70, 19), (70, 32), (40, 17)):
            for got in caches(2, 16, 32, torch.float32):
                want = got.clone()
                kept = torch.stack([torch.randperm(rows)[:count].sort().values for _ in range(2)])
                old, new = slots(source, 16, rows), slots(target, 16, count)
                kernels.compact(got, kept, old, new)
                kernels.compact_torch(want, kept, old, new)
                assert torch.equal(got, want)
                checked += 1
    return checked


def safe_in_place() -> int:
    """What it forbids would really go wrong, so that the check is not idle."""
    source, target = [3, 9, 0, 7, 11], [11, 3, 9]
    assert not kernels.safe_in_place(source, target)
    got = caches(1, 16, 32, torch.float32)[0]
    want = got.clone()
    kept = torch.arange(70 - 40, 70)[None]
    old, new = slots(source, 16, 70), slots(target, 16, 40)
    kernels.compact(got, kept, old, new)
    kernels.compact_torch(want, kept, old, new)
    assert not torch.equal(got, want)
    return 1


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if os.environ.get("TRITON_INTERPRET") != "1":
        torch.set_default_device("cuda")
    print("checked", {f.__name__: f for f in (window_logits, compact, safe_in_place)}[sys.argv[1]]())
