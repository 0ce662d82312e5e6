from __future__ import annotations

from typing import Any

import pytest

from vllm_prune import intake
from vllm_prune.budget import BudgetError, PruningField, VisualField
from vllm_prune.config import Defaults, Limits, PruneConfig
from vllm_prune.intake import SCOPE, Policy, Scope


def policy(limits: dict[str, Any] | None = None, default: dict[str, Any] | None = None) -> Policy:
    return Policy(
        PruneConfig(
            defaults=Defaults(visual=VisualField(**default) if default else None),
            limits=Limits(**(limits or {})),
            presets={
                "fast": PruningField(visual=VisualField(keep=0.25, strategy="uniform")),
                "off": PruningField(visual=None),
            },
        )
    )


def kept(decision: intake.Decision) -> str | None:
    part = decision.spec.image if decision.spec else None
    return part.keep if part else None


def test_absent_parts_take_the_default_and_null_turns_off() -> None:
    server = policy(default={"keep": 0.5, "strategy": "uniform"})
    assert kept(server.decide()) == "0.5"
    assert kept(server.decide({})) == "0.5"
    assert kept(server.decide({"kv": None})) == "0.5"
    assert server.decide({"visual": None}).spec is None
    assert kept(server.decide({"visual": {"keep": 0.1, "strategy": "uniform"}})) == "0.1"


def test_presets_by_name_and_by_model() -> None:
    server = policy(default={"keep": 0.5, "strategy": "uniform"})
    assert kept(server.decide("fast")) == "0.25"
    assert kept(server.decide(None, "fast")) == "0.25"
    assert kept(server.decide({"visual": {"keep": 0.1, "strategy": "uniform"}}, "fast")) == "0.1"
    assert server.decide("off").spec is None
    with pytest.raises(BudgetError) as caught:
        server.decide("slow")
    assert caught.value.param == "pruning"
    with pytest.raises(BudgetError) as caught:
        server.decide(None, "slow")
    assert caught.value.param == "model"


def test_kv_is_refused_not_ignored() -> None:
    with pytest.raises(BudgetError) as caught:
        policy().decide({"kv": {"keep": 0.2}})
    assert caught.value.param == "pruning.kv"


def test_limits_clamp_and_say_so() -> None:
    server = policy({"min_keep": 0.2, "max_keep": 0.8})
    low = server.decide({"visual": {"keep": 0.1, "strategy": "uniform"}})
    assert kept(low) == "0.2"
    assert low.clamped == ({"param": "pruning.visual.keep", "requested": 0.1, "applied": 0.2, "reason": "min_keep"},)
    high = server.decide({"visual": {"keep": 0.9, "strategy": "uniform"}})
    assert kept(high) == "0.8"
    inside = server.decide({"visual": {"keep": 0.5, "strategy": "uniform"}})
    assert (kept(inside), inside.clamped) == ("0.5", ())
    unasked = server.decide()
    assert kept(unasked) == "0.8"
    assert unasked.clamped[0]["requested"] == 1.0


def test_limits_reject_when_told_to() -> None:
    server = policy({"min_keep": 0.2, "on_limit": "reject"})
    with pytest.raises(BudgetError) as caught:
        server.decide({"visual": {"keep": 0.1, "strategy": "uniform"}})
    assert caught.value.param == "pruning.visual.keep"


def test_strategies_outside_the_list_are_refused_never_replaced() -> None:
    server = policy({"strategies": ("random",)})
    with pytest.raises(BudgetError) as caught:
        server.decide({"visual": {"keep": 0.5, "strategy": "uniform"}})
    assert caught.value.param == "pruning.visual.strategy"


def test_token_limits() -> None:
    server = policy({"min_tokens": 10, "max_tokens": 100})
    low = server.decide({"visual": {"max_tokens": 2, "strategy": "uniform"}})
    assert low.spec is not None
    assert (low.spec.max_tokens, low.spec.limit) == (10, 100)
    high = server.decide({"visual": {"max_tokens": 5000, "strategy": "uniform"}})
    assert high.spec is not None
    assert high.spec.max_tokens == 100


def test_xargs_and_field_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "policy", policy)
    assert kept(intake.decide({"pruning": '{"visual": {"keep": 0.3, "strategy": "uniform"}}'})) == "0.3"
    assert kept(intake.decide({"pruning": "fast"})) == "0.25"
    assert intake.decide(None).spec is None
    for wrong in (0.5, '{"visual": ', "nobody"):
        with pytest.raises(BudgetError):
            intake.decide({"pruning": wrong})
    token = SCOPE.set(Scope(policy().decide("fast")))
    try:
        assert kept(intake.decide({})) == "0.25"
        with pytest.raises(BudgetError):
            intake.decide({"pruning": "fast"})
    finally:
        SCOPE.reset(token)


def test_usage_adds_up_over_items() -> None:
    scope = Scope(policy().decide("fast"))
    token = SCOPE.set(scope)
    item = {"modality": "image", "strategy": "uniform", "input_tokens": 100, "kept_tokens": 25, "capped": False}
    try:
        intake.record([item, {**item, "modality": "video", "strategy": "mc_evs"}, {**item, "strategy": "none"}])
    finally:
        SCOPE.reset(token)
    assert scope.usage() == {
        "visual": {"strategy": "mc_evs+uniform", "input_tokens": 300, "kept_tokens": 75},
        "kv": None,
        "clamped": [],
    }
    assert Scope(policy().decide()).usage()["visual"] is None
