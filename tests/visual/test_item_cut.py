"""Where an item is cut inside the tower when the request leaves it open."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_prune.budget.canonical import VisualSpec, canonical
from vllm_prune.budget.fields import parse_visual
from vllm_prune.visual.item_plan import ItemPlan, with_cut


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
    for untouched in (spec(), spec(where="embed"), VisualSpec(), canonical(parse_visual({"keep": 0.5}))):
        assert with_cut(untouched, 2) == untouched
    stts = canonical(parse_visual({"keep": 0.5, "strategy": "stts"}))
    assert with_cut(stts, 2) == stts


def test_a_plan_that_was_never_resolved() -> None:
    assert ItemPlan("uniform", '{"after":null,"where":"tower"}', 3, 0).cut == 4
    assert ItemPlan("uniform", '{"after":null,"where":"embed"}', 3, 0).cut is None
