"""The row that carries an item's plan to the model."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.budget.canonical import VisualSpec, canonical
from vllm_prune.budget.fields import parse_visual
from vllm_prune.visual.item_plan import ItemPlan, decode, field_name, plan_of, unpruned, with_cut

counts = st.lists(st.integers(0, 1 << 24), max_size=8).map(tuple)
options = st.dictionaries(st.text(max_size=8), st.booleans() | st.integers() | st.text(max_size=8), max_size=3)
plans = st.builds(
    ItemPlan,
    st.text(min_size=1, max_size=12),
    options.map(json.dumps),
    st.integers(1, 1 << 24),
    # 63-bit seeds: a float would round them.
    st.integers(0, 2**63 - 1),
    st.none() | counts,
    st.none() | counts,
)


@given(plans)
def test_round_trip(plan: ItemPlan) -> None:
    row = plan.encode()
    assert row.dtype == torch.uint8
    assert row.dim() == 1
    assert decode(row) == plan
    assert decode(row).option_values == json.loads(plan.options)  # type: ignore[union-attr]


@given(plans)
def test_equal_plans_have_equal_bytes(plan: ItemPlan) -> None:
    assert torch.equal(plan.encode(), decode(plan.encode()).encode())  # type: ignore[union-attr]


def test_unpruned_items_have_an_empty_row() -> None:
    assert unpruned().numel() == 0
    assert decode(unpruned()) is None
    assert decode(None) is None


def test_plan_of_an_item() -> None:
    plan = ItemPlan("uniform", "{}", 4, 7, per_frame=(0, 4))
    item = {field_name("video"): SimpleNamespace(data=plan.encode())}
    assert plan_of(item, "video") == plan
    assert plan_of(item, "image") is None
    assert plan_of({field_name("image"): SimpleNamespace(data=unpruned())}, "image") is None


def spec(**options: Any) -> VisualSpec:
    return canonical(parse_visual({"keep": 0.5, "strategy": "uniform", "options": options}))


def after(budget: VisualSpec) -> Any:
    assert budget.image is not None
    return json.loads(budget.image.options)["after"]


@pytest.mark.parametrize(("depth", "expected"), [(None, 4), (32, 4), (5, 4), (4, 3), (2, 1), (1, 0)])
def test_the_default_leaves_a_block(depth: int | None, expected: int) -> None:
    resolved = with_cut(spec(where="tower"), depth)
    assert after(resolved) == expected
    assert resolved == with_cut(spec(where="tower", after=expected), depth)
    assert resolved.image is not None
    assert ItemPlan("uniform", resolved.image.options, 3, 0).cut == expected


def test_what_is_said_stays() -> None:
    assert after(with_cut(spec(where="tower", after=2), 8)) == 2
    evs = canonical(parse_visual({"keep": 0.5, "strategy": "evs"}))
    for untouched in (spec(), spec(where="embed"), VisualSpec(), evs):
        assert with_cut(untouched, 2) == untouched
    stts = canonical(parse_visual({"keep": 0.5, "strategy": "stts"}))
    assert with_cut(stts, 2) == stts


def test_a_place_that_nobody_has_settled_is_behind_the_tower() -> None:
    assert with_cut(spec(where="auto", after=2), 8) == spec(where="embed") == with_cut(spec(where="auto"), 8)


def test_a_plan_that_was_never_resolved() -> None:
    assert ItemPlan("uniform", '{"after":null,"where":"tower"}', 3, 0).cut == 4
    assert ItemPlan("uniform", '{"after":null,"where":"embed"}', 3, 0).cut is None
