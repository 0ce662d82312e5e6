"""Budgets that leave the count to the strategy."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_prune.budget.allocate import allocate, plan
from vllm_prune.budget.errors import BudgetError
from vllm_prune.budget.fields import PruningField
from vllm_prune.config.load import PruneConfig
from vllm_prune.grid import Grid
from vllm_prune.policy import Decision, decide

EXACT = {"strategy": "pixel_exact", "keep": "auto"}


def decided(visual: dict[str, Any], **limits: Any) -> Decision:
    return decide(PruneConfig.model_validate({"limits": limits}), {"visual": visual})


def test_it_is_a_budget_of_everything_until_pixels_are_seen() -> None:
    spec = decided(EXACT).spec
    assert spec is not None
    assert spec.image is not None
    assert spec.image.keep == "auto"
    (budget, _) = allocate(spec, {"image": [12, 30]})["image"]
    assert budget is not None
    assert plan(Grid(1, 3, 4), budget) == 12
    assert not spec.counts
    half = decided({**EXACT, "keep": 0.5}).spec
    assert half is not None
    other = allocate(half, {"image": [12]})["image"][0]
    assert other is not None
    assert budget.key() != other.key()


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"visual": {"strategy": "divprune", "keep": "auto"}}, "pruning.visual.keep"),
        ({"visual": {"keep": "auto"}}, "pruning.visual.keep"),
        ({"visual": {"strategy": "none", "keep": "auto"}}, "pruning.visual.strategy"),
        ({"visual": {**EXACT, "keep": "Auto"}}, "pruning.visual.keep"),
        ({"visual": {**EXACT, "max_tokens": 5}}, "pruning.visual.keep"),
        ({"visual": {"keep": 0.5, "video": {"keep": "auto"}}}, "pruning.visual.video.keep"),
        ({"kv": {"strategy": "snapkv", "keep": "auto"}}, "pruning.kv.keep"),
    ],
)
def test_it_is_for_strategies_that_count(field: dict[str, Any], param: str) -> None:
    with pytest.raises(BudgetError) as refusal:
        decide(PruneConfig(), field)
    assert refusal.value.param == param


def test_an_operators_most_takes_its_place() -> None:
    decision = decided(EXACT, max_keep=0.5)
    assert decision.spec is not None
    assert decision.spec.image is not None
    assert decision.spec.image.keep == "0.5"
    entry = {"param": "pruning.visual.keep", "requested": "auto", "applied": 0.5, "reason": "max_keep"}
    assert decision.clamped == (entry,)
    with pytest.raises(BudgetError):
        decided(EXACT, max_keep=0.5, on_limit="reject")
    assert decided(EXACT, min_keep=0.5).clamped == ()


@pytest.mark.filterwarnings("error")
def test_it_can_be_a_preset_and_is_in_the_schema() -> None:
    config = PruneConfig.model_validate({"presets": {"exact": {"visual": EXACT}}})
    assert decide(config, "exact") == decided(EXACT)
    assert config.presets["exact"].model_dump(exclude_unset=True) == {"visual": EXACT}
    keep = PruningField.model_json_schema()["$defs"]["VisualField"]["properties"]["keep"]
    assert {"const": "auto"} in keep["anyOf"]
