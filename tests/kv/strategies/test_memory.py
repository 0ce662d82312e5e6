"""What a strategy holds at once is bounded, whatever window a request names."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_prune.catalogue import KV
from vllm_prune.kv.compaction import transient_bytes
from vllm_prune.kv.strategies import base, expected_attention
from vllm_prune.kv.strategies.base import LayerView, summed_attention, window_attention

from .views import view

pytestmark = pytest.mark.slow

MAX_WINDOW = 64
QUERYING = [name for name in KV.names() if "queries" in KV.create(name).needs]


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors that were made inside and alive at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def peak_of(strategy: str, seen: LayerView, count: int) -> int:
    with torch.inference_mode(), PeakMemory() as memory:
        KV.create(strategy).select(seen, count)
    return memory.peak


@pytest.mark.parametrize("name", [name for name in QUERYING if name != "r_kv"])
def test_the_largest_window_at_a_long_prompt(name: str) -> None:
    """One layer in the proportions of Qwen2.5-VL-7B, but for narrower heads: the attention alone is 235 MB."""
    heads, group, rows = 4, 7, 32768
    seen = view(heads, group, rows, 4, MAX_WINDOW)
    attention = 4 * heads * group * MAX_WINDOW * rows
    linear = 4 * heads * rows * (2 * group + 10 * seen.keys.shape[2])
    assert peak_of(name, seen, 4096) < 3 * 4 * base.PART + linear < 0.9 * attention


@pytest.mark.parametrize("name", QUERYING)
def test_memory_follows_the_part(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above at a smaller scale, so that the quadratic strategy is quick, too."""
    monkeypatch.setattr(base, "PART", 1 << 16)
    monkeypatch.setattr(expected_attention, "PART", 1 << 16)
    monkeypatch.setattr("vllm_prune.kv.strategies.r_kv.CHUNK", 1 << 16)
    heads, group, rows = 2, 7, 2048
    seen = view(heads, group, rows, 4, MAX_WINDOW)
    attention = 4 * heads * group * MAX_WINDOW * rows
    assert peak_of(name, seen, 512) < 0.6 * attention


@pytest.mark.parametrize("name", KV.names())
def test_what_is_reserved_at_profiling_suffices(name: str) -> None:
    """All rows belong to two screenshots, the most that GUI-KV compares."""
    heads, group, rows = 4, 7, 2048 if name == "r_kv" else 16384
    seen = view(heads, group, rows, 0, MAX_WINDOW)
    media = (torch.arange(rows) > rows // 3).long()
    seen = replace(seen, media=media.expand(heads, rows))
    layer = SimpleNamespace(
        num_kv_heads=heads, num_heads=heads * group, head_size=seen.keys.shape[2], dtype=torch.float32
    )
    made_by_the_compactor = 4 * seen.keys.numel() * 4
    assert peak_of(name, seen, 1024) + made_by_the_compactor < transient_bytes(layer, rows, torch.device("cuda"))


def test_the_whole_attention_at_once_would_be_noticed() -> None:
    heads, group, rows = 2, 7, 2048
    seen = view(heads, group, rows, 0, MAX_WINDOW)
    with torch.inference_mode(), PeakMemory() as memory:
        window_attention(seen).sum(dim=2)
    assert memory.peak > 2 * 4 * heads * group * MAX_WINDOW * rows


@pytest.mark.parametrize("part", [1, 100, 1000, 5000])
@pytest.mark.parametrize("kernel", [False, True])
def test_parts_add_up(part: int, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = view(3, 2, 45, 2, 9, 5)
    if kernel:
        plain = seen
        seen = replace(seen, logits=lambda heads, window: base._window_logits(plain, heads, window))
    whole = window_attention(seen)
    monkeypatch.setattr(base, "PART", part)
    summed = summed_attention(seen)
    torch.testing.assert_close(summed, whole.sum(dim=2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(summed.sum(dim=2), torch.full((3, 2), 9.0))
    some = window_attention(seen, slice(1, 3), slice(2, 7))
    torch.testing.assert_close(some, whole[1:3, :, 2:7], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", QUERYING)
def test_scores_do_not_depend_on_the_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = view(2, 3, 60, 3, 6, 1)
    whole = KV.create(name).score(seen).rows
    for part in (1, 500, 1500):
        monkeypatch.setattr(base, "PART", part)
        monkeypatch.setattr(expected_attention, "PART", part)
        np.testing.assert_allclose(KV.create(name).score(seen).rows, whole, rtol=1e-4, atol=1e-6)
