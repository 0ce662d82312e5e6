"""A budget per group of layers: when it is due, what it clamps, which queries are observed for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_prune.budget.kv import KvSpec
from vllm_prune.kv.group_budgets import GroupBudgets, visual_tokens
from vllm_prune.kv.tally import Tally
from vllm_prune.kv.window_slots import WindowLimits

LIMITS = WindowLimits(64, 512, 8)
LAYERS = (14, 14)


def item(offset: int, length: int, mask: list[bool] | None = None) -> Any:
    """A media item of a prompt."""
    return SimpleNamespace(offset=offset, length=length, is_embed=None if mask is None else torch.tensor(mask))


PICTURE = [item(10, 80)]


def divided(spec: KvSpec, prompt: int = 100, places: Any = PICTURE, layers: tuple[int, ...] = LAYERS) -> GroupBudgets:
    return GroupBudgets.of(spec, prompt, places, LIMITS, layers)


def test_visual_tokens_before_a_position() -> None:
    places = [item(2, 4), item(8, 4, [True, False, True, True])]
    assert [visual_tokens(places, before) for before in (0, 2, 4, 8, 9, 10, 11, 12, 99)] == [
        0,
        0,
        2,
        4,
        5,
        5,
        6,
        7,
        7,
    ]


def test_one_group_has_the_budget_of_the_request() -> None:
    spec = KvSpec("snapkv", keep="0.5", buffer=16)
    for layers in ((1,), (28,), LAYERS):
        budgets = divided(spec, layers=layers)
        assert set(budgets.counts) == {50}
        assert budgets.kept_tokens == 50
        assert budgets.clamped() == []
        for rows, compacted in ((50, False), (51, False), (66, True), (67, True)):
            assert budgets.due(0, rows, compacted) is spec.due(100, rows, compacted)
        assert budgets.gamma(0) == spec.gamma(100)


def test_what_evicts_once_does_so_in_one_group_as_well() -> None:
    budgets = divided(KvSpec("dyvte", keep="0.5", buffer=16), layers=(1,))
    assert budgets.counts == (50,)
    assert budgets.kept_tokens == 50
    assert [budgets.due(0, rows, False) for rows in (50, 51)] == [False, True]
    assert not budgets.due(0, 400, True)
    assert budgets.observed_from([0]) == 92
    assert budgets.observed_from([50]) is None
    groups = divided(KvSpec("dyvte", keep="0.6"))
    assert groups.counts == divided(KvSpec("visual_exit", keep="0.6")).counts == (100, 20)


def test_each_group_is_due_by_its_own_rows() -> None:
    budgets = divided(KvSpec("pyramid_kv", keep="0.3", buffer=16))
    first, second = budgets.counts
    assert first > 30 > second
    assert budgets.due(0, first + 1, False)
    assert not budgets.due(0, first, False)
    assert budgets.due(1, second + 17, True)
    assert not budgets.due(1, second + 16, True)
    assert (budgets.gamma(0), budgets.gamma(1)) == (first / 100, second / 100)
    assert budgets.kept_tokens == 30


def test_an_exit_evicts_after_prefill_only() -> None:
    budgets = divided(KvSpec("visual_exit", keep="0.6"))
    assert budgets.counts == (100, 20)
    assert budgets.due(1, 100, False)
    for number, rows, compacted in ((0, 100, False), (0, 900, False), (1, 900, True)):
        assert not budgets.due(number, rows, compacted)
    # The last window of the prompt, then nothing.
    assert budgets.observed_from([0, 0]) == 92
    assert budgets.observed_from([0, 80]) is None
    pictureless = divided(KvSpec("visual_exit", keep="0.6"), places=[])
    assert pictureless.counts == (100, 100)
    assert not pictureless.due(1, 900, False)
    assert pictureless.observed_from([0, 0]) is None


def test_observation_serves_the_group_that_is_due_first() -> None:
    budgets = divided(KvSpec("pyramid_kv", keep="0.3", buffer=16))
    first, second = budgets.counts
    assert budgets.observed_from([0, 0]) == 92
    assert budgets.observed_from([100 - first, 100 - second]) == 100 + 16 + 1 - 8
    assert budgets.observed_from([100 - first, 150 - second]) == 100 + 16 + 1 - 8


@pytest.mark.parametrize(
    ("spec", "entry"),
    [
        (KvSpec("visual_exit", keep="0.1"), ("pruning.kv.keep", 0.1, 0.6)),
        (KvSpec("visual_exit", max_tokens=10), ("pruning.kv.max_tokens", 10, 60)),
        (KvSpec("visual_exit", keep="0.6"), None),
        (KvSpec("visual_exit", keep="0.8"), None),
        (KvSpec("pyramid_kv", keep="0.1"), None),
    ],
)
def test_text_that_stays_is_said(spec: KvSpec, entry: tuple[str, float, float] | None) -> None:
    said = divided(spec).clamped()
    expected = [] if entry is None else [dict(zip(("param", "requested", "applied"), entry, strict=True))]
    assert said == [{**one, "reason": "text_kept"} for one in expected]


def test_a_value_is_said_once() -> None:
    spec = KvSpec("visual_exit", keep="0.01", window=8, window_named=True)
    budgets = divided(spec)
    bounds = LIMITS.clamped(spec, 100)
    assert [entry["reason"] for entry in bounds] == ["min_rows", "window_over_budget"]
    assert [entry["reason"] for entry in budgets.merged(bounds)] == ["window_over_budget", "text_kept"]


def test_visual_tokens_of_the_window_stay_like_text() -> None:
    assert divided(KvSpec("visual_exit", keep="0.1"), places=[item(0, 100)]).counts == (100, 8)


def test_a_tally_names_the_groups_where_there_are_several() -> None:
    budgets = divided(KvSpec("visual_exit", keep="0.6"))
    tally = Tally.of(budgets, [], (0, 14))
    tally.add(budgets.mean([0, 80]), [0, 5])
    assert (tally.kept_tokens, tally.evicted_tokens, tally.freed_blocks, tally.compactions) == (60, 40, 5, 1)
    assert tally.layer_groups == [
        {"first_layer": 0, "kept_tokens": 100, "freed_blocks": 0},
        {"first_layer": 14, "kept_tokens": 20, "freed_blocks": 5},
    ]
    whole = divided(KvSpec("snapkv", keep="0.6"), layers=(28,))
    assert Tally.of(whole, [], (0,)).layer_groups == []
