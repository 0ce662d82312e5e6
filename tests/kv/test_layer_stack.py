"""Layers that come together choose as each alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_prune.catalogue import KV
from vllm_prune.kv.cache import CacheRows
from vllm_prune.kv.layer_stack import STACKED, LayerStack, joined_fields
from vllm_prune.kv.strategies._highest import highest
from vllm_prune.kv.strategies.base import KvStrategy

from .strategies.views import view

TOGETHER = [name for name in KV.names() if KV.create(name).by_head()]


def layer(heads: int = 2, size: int = 64, scale: float = 0.1, device: str = "cpu") -> Any:
    cache = SimpleNamespace(device=torch.device(device), dtype=torch.float32)
    return SimpleNamespace(
        num_kv_heads=heads, num_heads=4, head_size=size, impl=SimpleNamespace(scale=scale), kv_cache=cache
    )


def divided(layers: list[Any], rows: int, strategy: KvStrategy, window: int = 8) -> list[tuple[int, ...]]:
    access = cast("list[CacheRows]", [None] * len(layers))
    return [one.indices for one in LayerStack.divide(range(len(layers)), layers, access, rows, window, strategy)]


def test_the_defaults_take_layers_together() -> None:
    assert {"gui_kv", "snapkv"} <= set(TOGETHER)
    assert not KV.create("gui_kv", {"selection": "per_layer"}).by_head()


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("probe", ["last", "activation"])
def test_heads_choose_apart(name: str, probe: str) -> None:
    strategy = KV.create(name, {"probe": probe})
    for seed in range(4):
        both = view(4, 3, 60, 3, 8, seed)
        kept, scores = strategy.select(both, 30)
        for first in (0, 2):
            alone, own = strategy.select(view(4, 3, 60, 3, 8, seed, (first, first + 2)), 30)
            assert torch.equal(kept[first : first + 2], alone)
            torch.testing.assert_close(scores.rows[first : first + 2], own.rows)


def test_a_choice_of_all_heads_would_be_noticed() -> None:
    """A control: heads that choose alike choose otherwise when there are more of them."""
    strategy = KV.create("gui_kv", {"selection": "per_layer"})
    kept, _ = strategy.select(view(4, 3, 60, 3, 8, 1), 30)
    alone, _ = strategy.select(view(4, 3, 60, 3, 8, 1, (0, 2)), 30)
    assert not torch.equal(kept[:2], alone)


def test_stacks_hold_layers_of_one_shape_and_no_more_than_fit() -> None:
    apart = KV.create("knorm")
    together = KV.create("snapkv")
    layers = [layer(), layer(), layer(heads=4), layer(), layer(scale=0.2)]
    assert divided(layers, 100, together) == [(0, 1), (2,), (3,), (4,)]
    assert divided(layers[:2], 100, apart) == [(0,), (1,)]
    assert divided([layer(device="cuda")] * 2, 100, together) == [(0,), (1,)]
    fitting = STACKED // (2 * 64 * 1000)
    sizes = [len(one) for one in divided([layer()] * (2 * fitting + 1), 1000, together)]
    assert sizes == [fitting, fitting, 1]
    assert divided([layer()] * 2, 10**6, together) == [(0,), (1,)]
    # 4 query heads of 4,096 queries and 400 rows: more than half of the weights that are held at once.
    assert divided([layer()] * 2, 400, together) == [(0, 1)]
    assert divided([layer()] * 2, 400, together, window=4096) == [(0,), (1,)]


def test_fields_of_several_layers_lie_side_by_side() -> None:
    queries, norms = torch.arange(12.0).view(2, 2, 3), torch.arange(8.0).view(2, 4)
    fields = {"queries": queries, "saliency": norms, "logits": None}
    found = joined_fields([fields, fields])
    assert found.keys() == {"queries", "saliency"}
    assert torch.equal(found["queries"], torch.cat([queries, queries], dim=1))
    assert torch.equal(found["saliency"], torch.cat([norms, norms]))
    with pytest.raises(ValueError, match="moments"):
        joined_fields([{"moments": norms}] * 2)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 6), st.integers(0, 99), st.data())
def test_highest_scores_with_ties(heads: int, rows: int, kinds: int, seed: int, data: st.DataObject) -> None:
    scores = torch.randint(kinds, (heads, rows), generator=torch.Generator().manual_seed(seed)) / 2
    count = data.draw(st.integers(0, rows))
    sorted_ones = scores.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values
    assert torch.equal(highest(scores, count), sorted_ones)


def test_scores_that_are_no_numbers_leave_enough_rows() -> None:
    scores = torch.tensor([[1.0, float("nan"), 3.0, float("nan"), 2.0]])
    assert highest(scores, 1).shape == (1, 1)
    assert highest(scores, 3).shape == (1, 3)
