"""Budgets that are divided over groups of layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.catalogue import KV
from vllm_prune.kv.strategies._depth import DepthBudget
from vllm_prune.kv.strategies.base import TEXT

from .views import view

LAYERS = st.lists(st.integers(1, 30), min_size=2, max_size=6).map(tuple)


@st.composite
def budgets(draw: st.DrawFn) -> DepthBudget:
    """Budgets as a request may name them: from three rows to more than the prompt has."""
    prompt = draw(st.integers(4, 3000))
    count = draw(st.integers(3, 2 * prompt))
    window = max(1, min(draw(st.integers(1, 64)), count - 2, prompt))
    return DepthBudget(count, window, prompt, draw(st.integers(0, max(0, prompt - window))), draw(LAYERS))


@given(budgets(), st.integers(1, 1000))
def test_a_pyramid_falls_and_its_mean_is_the_budget(budget: DepthBudget, beta: int) -> None:
    counts = KV.create("pyramid_kv", {"beta": beta}).group_counts(budget)
    total = sum(budget.layers)
    mean = sum(layers * count for layers, count in zip(budget.layers, counts, strict=True)) / total
    assert list(counts) == sorted(counts, reverse=True)
    assert min(counts) >= min(budget.window, budget.count)
    if budget.count < budget.prompt:
        assert max(counts) <= budget.prompt
        assert budget.count - 1 < mean <= budget.count
    else:
        assert set(counts) == {budget.count}


@pytest.mark.parametrize(
    ("count", "layers", "counts"),
    [
        # 208 rows, 8 of them in the window: 200 scored, from 390 in layer 0 to 10 in layer 3, so 326.7 and 73.3.
        (208, (2, 2), (335, 81)),
        (208, (1, 1, 1, 1), (399, 271, 144, 18)),
        # The ramp would begin at 780, and the prompt has 592 rows before its window: from 592 to 208.
        (408, (1, 3), (600, 344)),
        (408, (2, 2), (536, 280)),
    ],
)
def test_a_pyramid_worked_out_by_hand(count: int, layers: tuple[int, ...], counts: tuple[int, ...]) -> None:
    assert KV.create("pyramid_kv").group_counts(DepthBudget(count, 8, 600, 500, layers)) == counts


EXITS = ("visual_exit", "dyvte")


@pytest.mark.parametrize("name", EXITS)
@given(budgets())
def test_an_exit_keeps_all_text_in_every_layer(name: str, budget: DepthBudget) -> None:
    first, *later = KV.create(name).group_counts(budget)
    if budget.count >= budget.prompt:
        assert {first, *later} == {budget.count}
        return
    assert first == budget.prompt
    assert len(set(later)) == 1
    assert budget.prompt - budget.visual <= later[0] <= budget.prompt
    total, early = sum(budget.layers), budget.layers[0]
    mean = (early * first + (total - early) * later[0]) / total
    # The budget, unless text alone is more.
    assert mean <= budget.count or later[0] == budget.prompt - budget.visual
    assert mean > budget.count - 1


@pytest.mark.parametrize(
    ("count", "layers", "counts"),
    [
        # 100 rows of text and 500 visual tokens. 350 rows on average are none of them in the later half.
        (350, (14, 14), (600, 100)),
        (400, (14, 14), (600, 200)),
        # As few as there are.
        (60, (14, 14), (600, 100)),
        (480, (14, 7, 7), (600, 360, 360)),
    ],
)
def test_an_exit_worked_out_by_hand(count: int, layers: tuple[int, ...], counts: tuple[int, ...]) -> None:
    assert KV.create("visual_exit").group_counts(DepthBudget(count, 8, 600, 500, layers)) == counts


def test_an_exit_drops_visual_tokens_before_any_text() -> None:
    seen = view(2, 2, 60, 3, 4, 5)
    text = seen.media == TEXT
    assert text.any()
    assert not text.all()
    count = int(text[0].sum()) + 6
    kept, _ = KV.create("visual_exit").select(seen, count)
    for head in range(2):
        inside = torch.zeros(60, dtype=torch.bool).index_fill(0, kept[head], True)
        assert inside[text[head]].all()
        assert inside.sum() == count


def test_gates_need_no_groups_of_layers() -> None:
    """In one group of layers every layer keeps the budget's count."""
    assert KV.create("dyvte").group_counts(DepthBudget(50, 8, 600, 500, (28,))) == (50,)
    assert not KV.strategy_class("dyvte").layered


def test_other_strategies_keep_the_same_everywhere() -> None:
    budget = DepthBudget(50, 8, 600, 500, (3, 4, 5))
    for name in KV.names():
        strategy = KV.create(name)
        divides = strategy.layered or name in EXITS
        assert (strategy.group_counts(budget) == (50, 50, 50)) == (not divides)
