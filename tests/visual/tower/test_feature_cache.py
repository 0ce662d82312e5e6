"""The tower's outputs by content: what is run again, what makes room, and that rows come back as they were."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY
from torch import Tensor

from vllm_prune.telemetry import metrics
from vllm_prune.visual.item_plan import ItemPlan
from vllm_prune.visual.strategies._frames import Frames
from vllm_prune.visual.tower.feature_cache import PAGE, Encoded, FeatureCache, refuse_feature_cache

WIDTH = 3
PAGE_BYTES = PAGE * WIDTH * 4


def plan(content: str, strategy: str = "uniform", options: str = "{}") -> ItemPlan:
    return ItemPlan(strategy, options, 1, 7, content=content)


class Tower:
    """Gives rows by content, and notes for which items it has run."""

    def __init__(self, sizes: dict[str, int], blocks: int = 0) -> None:
        self.sizes, self.blocks, self.runs = sizes, blocks, list[list[str]]()

    def rows(self, content: str) -> Tensor:
        seed = sum(map(ord, content))
        return torch.randn(self.sizes[content], WIDTH, generator=torch.Generator().manual_seed(seed))

    def ask(self, cache: FeatureCache, *plans: ItemPlan | None, apart: bool = True) -> Sequence[Encoded]:
        def run(members: Sequence[int]) -> list[Encoded]:
            names = [one.content if (one := plans[i]) is not None else "stock" for i in members]
            self.runs.append(names)
            captured: Any = {"tower_attention": torch.rand(self.blocks, 4) if self.blocks else None}
            return [Encoded(self.rows(name), captured) for name in names]

        encoded = cache.encode(plans, run, apart)
        for one, item in zip(plans, encoded, strict=True):
            assert torch.equal(item.rows, self.rows(one.content if one is not None else "stock"))
        return encoded


def cache(pages: int) -> FeatureCache:
    return FeatureCache(pages * PAGE_BYTES, WIDTH, torch.float32)


def test_the_tower_runs_once_for_an_item() -> None:
    tower, features = Tower({"a": 5, "b": PAGE + 1, "stock": 2}), cache(4)
    tower.ask(features, plan("a"), plan("b"))
    tower.ask(features, plan("a", "random"))
    tower.ask(features, plan("b"), None, plan("a"))
    assert tower.runs == [["a", "b"], ["stock"]]
    # Where items of a batch cannot be told apart, one that is missing runs all.
    tower.ask(features, plan("b"), None, apart=False)
    tower.ask(features, plan("a"), plan("b"), apart=False)
    assert tower.runs[2:] == [["b", "stock"]]


def test_items_used_least_recently_make_room() -> None:
    tower, features = Tower({"a": PAGE, "b": 2 * PAGE, "c": 1, "large": 5 * PAGE}), cache(4)
    tower.ask(features, plan("a"), plan("b"), plan("c"))
    tower.ask(features, plan("a"))
    # It needs more pages than there are, so nothing makes room for it.
    tower.ask(features, plan("large"))
    tower.ask(features, plan("large"))
    tower.ask(features, plan("a"), plan("b"), plan("c"))
    assert tower.runs == [["a", "b", "c"], ["large"], ["large"]]
    tower.sizes["d"] = 2 * PAGE
    tower.ask(features, plan("d"))
    tower.ask(features, plan("c"), plan("b"), plan("d"))
    # The oldest two were a and b; c and d have stayed until b took the room of a free page and one of d or c.
    assert tower.runs[3:] == [["d"], ["b"]]


def test_without_memory_everything_runs_and_nothing_is_counted() -> None:
    tower, features = Tower({"a": 5}), cache(0)
    before = lookups()
    tower.ask(features, plan("a"))
    tower.ask(features, plan("a"))
    assert tower.runs == [["a"], ["a"]]
    assert lookups() == before


def test_items_without_a_name_are_always_run() -> None:
    tower, features = Tower({"": 5}), cache(2)
    tower.ask(features, plan(""))
    tower.ask(features, plan(""))
    assert tower.runs == [[""], [""]]


def test_what_was_not_captured_is_run_again() -> None:
    features, plain, two = cache(2), Tower({"a": 4}), Tower({"a": 4}, blocks=2)
    plain.ask(features, plan("a"))
    attentive = plan("a", "recv_attn", '{"tower_blocks":1,"skip_blocks":1}')
    [first] = two.ask(features, attentive)
    [second] = two.ask(features, attentive)
    assert torch.equal(second.captured["tower_attention"], first.captured["tower_attention"])  # type: ignore[arg-type]
    two.ask(features, plan("a", "recv_attn"))
    plain.ask(features, plan("a"))
    assert (len(plain.runs), len(two.runs)) == (1, 1)
    two.ask(features, plan("a", "recv_attn", '{"tower_blocks":3,"skip_blocks":0}'))
    assert len(two.runs) == 2
    # All there are: known to be there only once all have been asked for.
    everything = plan("a", "vtc_cls", '{"tower_blocks":null,"skip_blocks":0}')
    two.ask(features, everything)
    two.ask(features, everything)
    two.ask(features, plan("a", "recv_attn", '{"tower_blocks":3,"skip_blocks":0}'))
    assert len(two.runs) == 3
    two.ask(features, plan("a", "zoo"))
    assert len(two.runs) == 4


def test_frames_before_pooling_are_captured_anew() -> None:
    """They are several times as large as what the memory holds of an item."""
    tower, features = Tower({"a": 4}), cache(2)
    for _ in range(2):
        tower.ask(features, plan("a", "vqtoken"))
    tower.ask(features, plan("a"))
    assert tower.runs == [["a"], ["a"]]
    frames = Frames(torch.zeros(1, 4, WIDTH), 4)
    features.encode([plan("b", "vqtoken")], lambda _: [Encoded(tower.rows("a"), {"unpooled": frames})])
    assert [kept.captured for kept in features._items.values()] == [{}, {}]


def test_new_weights_make_old_features_worthless() -> None:
    tower, features = Tower({"a": 5}), cache(2)
    tower.ask(features, plan("a"))
    features.clear()
    tower.ask(features, plan("a"))
    assert tower.runs == [["a"], ["a"]]


def lookups() -> tuple[float, float]:
    labels = {"model_name": metrics._model_name}
    hit, miss = (
        REGISTRY.get_sample_value("vllm_prune_feature_cache_lookups_total", {**labels, "result": result}) or 0.0
        for result in ("hit", "miss")
    )
    return hit, miss


def test_lookups_and_bytes_are_counted() -> None:
    tower, features = Tower({"a": PAGE + 1, "b": 2, "stock": 1}), cache(4)
    hit, miss = lookups()
    tower.ask(features, plan("a"), plan("b"), None)
    tower.ask(features, plan("a"), None)
    assert lookups() == (hit + 1, miss + 2)
    size = REGISTRY.get_sample_value("vllm_prune_feature_cache_bytes", {"model_name": metrics._model_name})
    assert size == 3 * PAGE_BYTES


def served(size: int, graphs: bool = False) -> Any:
    return SimpleNamespace(
        additional_config={"vllm_prune": {"feature_cache_bytes": size}},
        compilation_config=SimpleNamespace(cudagraph_mm_encoder=graphs),
        model_config=SimpleNamespace(dtype=torch.bfloat16),
    )


def test_sizes_that_cannot_be_had_are_an_error_at_start() -> None:
    with pytest.raises(ValueError, match=f"64 visual tokens take {PAGE * 8 * 2}"):
        FeatureCache.of(served(5), 8)
    with pytest.raises(ValueError, match="encoder CUDA graphs"):
        FeatureCache.of(served(1 << 20, graphs=True), 8)
    with pytest.raises(ValueError, match="not available for Molmo2"):
        refuse_feature_cache(served(1), "Molmo2")
    refuse_feature_cache(served(0), "Molmo2")
    assert FeatureCache.of(served(0, graphs=True), 8)._memory.numel() == 0
    memory = FeatureCache.of(served(1 << 20), 8)._memory
    assert memory.numel() * memory.element_size() == 1 << 20
