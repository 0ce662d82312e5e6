"""The arithmetic of KV budgets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.budget.errors import BudgetError
from vllm_prune.budget.kv import FEWEST_ROWS, KEY, KvSpec

SPECS = st.builds(
    KvSpec,
    st.just("random"),
    keep=st.floats(0.001, 0.999).map(lambda ratio: format(ratio, ".3f")),
    window=st.integers(1, 64),
    buffer=st.integers(1, 300),
)


def test_ratios_are_decimal() -> None:
    assert [KvSpec("x", keep="0.29").count(n) for n in (100, 1000, 2300)] == [29, 290, 667]
    assert KvSpec("x", keep="0.01").count(50) == FEWEST_ROWS
    assert KvSpec("x", max_tokens=1).count(5000) == FEWEST_ROWS


def test_windows_leave_a_scored_row() -> None:
    assert KvSpec("x", keep="0.5").window_of(100) == 8
    assert [KvSpec("x", keep="0.5").window_of(n) for n in (3, 4, 9, 10)] == [1, 2, 7, 8]


@pytest.mark.parametrize(
    ("prompt", "rows", "compacted", "due"),
    [
        (100, 50, False, False),
        (100, 51, False, True),
        (100, 100, False, True),
        (100, 66, True, False),
        (100, 67, True, True),
    ],
)
def test_when_a_compaction_is_due(prompt: int, rows: int, compacted: bool, due: bool) -> None:
    assert KvSpec("x", keep="0.5", buffer=16).due(prompt, rows, compacted) is due


def test_a_budget_above_the_prompt_caps_decoding() -> None:
    spec = KvSpec("x", max_tokens=120, buffer=16)
    assert not spec.due(100, 100, False)
    assert not spec.due(100, 136, False)
    assert spec.due(100, 137, False)
    assert spec.gamma(100) == 1.0
    assert KvSpec("x", max_tokens=25).gamma(100) == 0.25


@given(SPECS, st.integers(1, 5000))
def test_counts_and_windows_always_fit(spec: KvSpec, prompt: int) -> None:
    count = spec.count(prompt)
    assert count >= FEWEST_ROWS
    assert 1 <= spec.window_of(count) <= count - 2
    assert not spec.due(prompt, count, False)
    assert 0 < spec.gamma(prompt) <= 1


@given(SPECS)
def test_the_wire_form_comes_back(spec: KvSpec) -> None:
    assert KvSpec.of({KEY: spec.wire(), "other": 1}) == spec
    assert json.loads(spec.wire())["strategy"] == "random"
    assert KvSpec.of({"other": 1}) is None
    assert KvSpec.of(None) is None


GOOD = json.loads(KvSpec("snapkv", keep="0.5").wire())
HOSTILE: list[object] = [
    "not json", "", "[]", "null", "5", 5, 1.5, True, ["x"], {"strategy": "snapkv"}, "{}", "[" * 100_000,
    *(
        json.dumps({**GOOD, **change})
        for change in (
            {"strategy": "no_such"}, {"strategy": None}, {"strategy": ["snapkv"]}, {"strategy": "../snapkv"},
            {"options": "{"}, {"options": "[]"}, {"options": {}}, {"options": '{"no": 1}'}, {"options": "[" * 50_000},
            {"keep": 0.5}, {"keep": "0"}, {"keep": "1"}, {"keep": "-0.5"}, {"keep": "NaN"}, {"keep": "Infinity"},
            {"keep": "sNaN"}, {"keep": "x"}, {"keep": None}, {"keep": "0.5", "max_tokens": 5},
            {"keep": None, "max_tokens": 0}, {"keep": None, "max_tokens": True}, {"keep": None, "max_tokens": 2.5},
            {"keep": None, "max_tokens": 1 << 40}, {"keep": None, "max_tokens": "9"},
            {"window": 0}, {"window": 1 << 30}, {"window": "8"}, {"window": None}, {"window": 8.0},
            {"buffer": 0}, {"buffer": -1}, {"buffer": 1 << 60}, {"buffer": False}, {"ticket": None}, {"ticket": 7},
            {"more": 1},
        )
    ),
    json.dumps({key: value for key, value in GOOD.items() if key != "ticket"}),
]  # fmt: skip


@pytest.mark.parametrize("wire", HOSTILE, ids=lambda wire: str(wire)[:40])
def test_what_is_no_budget_is_refused(wire: object) -> None:
    with pytest.raises(BudgetError, match="malformed at") as caught:
        KvSpec.of({KEY: wire})
    assert len(str(caught.value)) < 400
    assert caught.value.param == f"extra_args.{KEY}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(st.one_of(JSON, JSON.map(json.dumps), st.dictionaries(st.sampled_from(sorted(GOOD)), JSON).map(
    lambda change: json.dumps({**GOOD, **change}))))  # fmt: skip
def test_any_extra_argument_is_a_budget_or_refused(wire: object) -> None:
    try:
        spec = KvSpec.of({KEY: wire})
    except BudgetError:
        return
    assert spec is None or KvSpec.of({KEY: spec.wire()}) == spec
