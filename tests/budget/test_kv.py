"""The arithmetic of KV budgets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
