"""The arithmetic of KV budgets."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

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
    assert KvSpec("x", keep="0.29").gamma(95) == 27 / 95


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


def entry(name: str, requested: float, applied: float, reason: str) -> dict[str, Any]:
    return {"param": f"pruning.kv.{name}", "requested": requested, "applied": applied, "reason": reason}


@pytest.mark.parametrize(
    ("spec", "prompt", "max_window", "entries"),
    [
        (KvSpec("x", keep="0.5"), 100, 64, []),
        (KvSpec("x", max_tokens=3), 100, 64, []),
        (KvSpec("x", max_tokens=1), 100, 64, [entry("max_tokens", 1, 3, "min_rows")]),
        (KvSpec("x", keep="0.000000001"), 120, 64, [entry("keep", 1e-9, 0.025, "min_rows")]),
        (KvSpec("x", keep="0.5"), 2, 64, [entry("keep", 0.5, 1.0, "min_rows")]),
        (KvSpec("x", keep="0.05"), 100, None, []),
        (
            KvSpec("x", keep="0.05", window=8, window_named=True),
            100,
            None,
            [entry("window", 8, 3, "window_over_budget")],
        ),
        (
            KvSpec("x", max_tokens=5, window=1024, window_named=True),
            100,
            64,
            [entry("window", 1024, 3, "window_over_budget")],
        ),
        (KvSpec("x", max_tokens=99, window=80, window_named=True), 900, 64, [entry("window", 80, 64, "max_window")]),
        (KvSpec("x", max_tokens=99, window=80, window_named=True), 900, None, []),
        (
            KvSpec("x", max_tokens=2, window=8, window_named=True),
            100,
            64,
            [entry("max_tokens", 2, 3, "min_rows"), entry("window", 8, 1, "window_over_budget")],
        ),
    ],
)
def test_what_cannot_be_had_is_said(
    spec: KvSpec, prompt: int, max_window: int | None, entries: list[dict[str, Any]]
) -> None:
    assert spec.clamped(prompt, max_window) == entries


@given(SPECS, st.integers(1, 5000), st.integers(1, 100))
def test_said_is_exactly_what_differs(spec: KvSpec, prompt: int, max_window: int) -> None:
    assert spec.keep is not None
    spec = replace(spec, window_named=True)
    said = {entry["param"]: entry["applied"] for entry in spec.clamped(prompt, max_window)}
    window = spec.window_of(spec.count(prompt), max_window)
    assert said.get("pruning.kv.window", spec.window) == window <= max_window
    assert ("pruning.kv.keep" in said) == (spec.count(prompt) > int(Decimal(spec.keep) * prompt))


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
             {"window_named": 1}, {"buffer_named": "no"},
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


def test_a_named_buffer_that_is_raised_for_a_quadratic_strategy_is_said() -> None:
    spec = KvSpec("r_kv", keep="0.5", buffer=1, buffer_named=True)
    entry = {"param": "pruning.kv.buffer", "requested": 1, "applied": 50, "reason": "quadratic"}
    assert spec.clamped(6400, quadratic=True) == [entry]
    assert spec.clamped(6400) == []
    assert replace(spec, buffer_named=False).clamped(6400, quadratic=True) == []
