from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from vllm_prune.budget.errors import BudgetError
from vllm_prune.budget.fields import Choice
from vllm_prune.config.limits import KvLimits, Limits
from vllm_prune.config.load import PruneConfig
from vllm_prune.config.tenants import hash_key
from vllm_prune.policy import Decision, decide


def server(**sections: Any) -> PruneConfig:
    return PruneConfig.model_validate(sections)


def strategies(decision: Decision) -> tuple[str | None, str | None]:
    assert decision.spec is not None
    return tuple(part and part.strategy for part in (decision.spec.image, decision.spec.video))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("allowed", "image", "video"),
    [
        (None, "divprune+uniform", "divprune+uniform"),
        (("evs", "uniform", "divprune"), "divprune+uniform", "divprune+uniform"),
        (("evs", "divprune"), "divprune", "divprune"),
        (("zoo", "random"), "zoo", "zoo"),
        (("random", "zoo"), "random", "random"),
        (("evs", "zoo"), "zoo", "evs"),
        (("none", "evs", "gui_dedup"), "gui_dedup", "evs"),
        # Nothing for pictures: they are refused by name, if there are any.
        (("evs",), "evs", "evs"),
        (("none",), "none", "none"),
    ],
)
def test_the_default_is_among_the_allowed(allowed: tuple[str, ...] | None, image: str, video: str) -> None:
    preferred, limits = (Choice("divprune", {"where": "tower"}), Choice("uniform")), Limits(strategies=allowed)
    for modality, names in (("image", image), ("video", video)):
        choices = limits.choices(modality, preferred)  # type: ignore[arg-type]
        assert "+".join(choice.strategy for choice in choices) == names
        assert all(choice in preferred or not choice.options for choice in choices)


def test_the_default_of_the_cache_is_among_the_allowed() -> None:
    preferred = (Choice("gui_kv"), Choice("snapkv"))
    for allowed, names in (
        (None, ["gui_kv", "snapkv"]),
        (("streaming", "snapkv"), ["snapkv"]),
        (("streaming", "knorm"), ["streaming"]),
    ):
        assert [choice.strategy for choice in KvLimits(strategies=allowed).choices(preferred)] == names


def test_a_request_without_a_strategy_gets_an_allowed_one() -> None:
    config = server(limits={"strategies": ["uniform", "evs"], "kv": {"strategies": ["streaming", "keydiff"]}})
    decision = decide(config, {"visual": {"keep": 0.5}, "kv": {"keep": 0.5}})
    assert strategies(decision) == ("uniform", "uniform")
    assert decision.kv is not None
    assert decision.kv.strategy == "streaming"
    assert decision.clamped == ()
    both = decide(server(limits={"kv": {"strategies": ["keydiff", "snapkv"]}}), {"kv": {"keep": 0.5}})
    assert both.kv is not None
    assert both.kv.strategy == "snapkv"


def test_limits_prune_with_allowed_strategies() -> None:
    config = server(limits={"strategies": ["uniform"], "max_keep": 0.5, "max_tokens": 100})
    decision = decide(config)
    assert strategies(decision) == ("uniform", "uniform")
    off = decide(config, {"visual": {"keep": 0.5, "video": None}})
    assert off.spec is not None
    capped = decide(server(limits={"strategies": ["uniform"], "max_tokens": 100}))
    assert capped.spec is not None
    assert capped.spec.image is None
    assert capped.spec.part_of_cap("image").strategy == "uniform"
    assert capped.spec.part_of_cap("video").strategy == "uniform"


def test_a_named_strategy_is_refused_all_the_same() -> None:
    config = server(limits={"strategies": ["uniform"], "kv": {"strategies": ["keydiff"]}})
    for field in ({"visual": {"keep": 0.5, "strategy": "divprune"}}, {"kv": {"keep": 0.5, "strategy": "snapkv"}}):
        with pytest.raises(BudgetError, match="is not allowed here"):
            decide(config, field)
    assert decide(config, {"kv": {"strategy": "none"}}).kv is None


@pytest.mark.parametrize(
    ("defaults", "word"),
    [
        ({"visual": {"keep": 0.5, "strategy": "divprune"}}, "defaults.visual: strategy 'divprune' is not among"),
        ({"kv": {"keep": 0.5, "strategy": "snapkv"}}, "defaults.kv: strategy 'snapkv' is not among limits: keydiff"),
    ],
)
def test_defaults_that_the_limits_forbid_are_an_error_at_start(defaults: dict[str, Any], word: str) -> None:
    limits = {"strategies": ["uniform"], "kv": {"strategies": ["keydiff"]}}
    with pytest.raises(ValidationError, match=word):
        server(defaults=defaults, limits=limits)
    tenants = {hash_key("a" * 20): {"name": "small", "limits": limits}}
    with pytest.raises(ValidationError, match=f"tenant small: {word}"):
        server(defaults=defaults, tenants=tenants)


def test_defaults_without_a_strategy_follow_the_limits() -> None:
    limits = {"strategies": ["uniform"], "kv": {"strategies": ["keydiff"]}}
    config = server(defaults={"visual": {"keep": 0.5}, "kv": {"keep": 0.5}}, limits=limits)
    decision = decide(config)
    assert strategies(decision) == ("uniform", "uniform")
    assert decision.kv is not None
    assert decision.kv.strategy == "keydiff"


@pytest.mark.parametrize(
    "limits",
    [
        {"strategies": []},
        {"kv": {"strategies": []}},
        {"strategies": [""]},
        {"strategies": ["none"], "max_keep": 0.5},
        {"strategies": ["none"], "max_tokens": 5},
        {"min_keep": 0.5, "max_keep": 0.4},
        {"min_tokens": 5, "max_tokens": 4},
        {"kv": {"min_tokens": 5, "max_tokens": 4}},
        {"kv": {"max_window": 0}},
        {"kv": {"max_window": 1025}},
        {"kv": {"max_window": True}},
        {"kv": {"min_buffer": 0}},
    ],
)
def test_limits_that_make_no_sense(limits: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Limits.model_validate({key: tuple(v) if isinstance(v, list) else v for key, v in limits.items()})


def test_windows_and_buffers_are_clamped_and_said() -> None:
    decision = decide(server(), {"kv": {"keep": 0.5, "window": 1024, "buffer": 1}})
    assert decision.kv is not None
    assert (decision.kv.window, decision.kv.buffer) == (64, 16)
    assert decision.clamped == (
        {"param": "pruning.kv.window", "requested": 1024, "applied": 64, "reason": "max_window"},
        {"param": "pruning.kv.buffer", "requested": 1, "applied": 16, "reason": "min_buffer"},
    )
    inside = decide(server(), {"kv": {"keep": 0.5, "window": 64, "buffer": 16}})
    assert inside.clamped == ()


@pytest.mark.parametrize("field", ["window", "buffer"])
def test_windows_and_buffers_are_refused_where_the_operator_says_so(field: str) -> None:
    config = server(limits={"on_limit": "reject"})
    with pytest.raises(BudgetError, match="operator's limit") as caught:
        decide(config, {"kv": {"keep": 0.5, field: 1024 if field == "window" else 1}})
    assert caught.value.param == f"pruning.kv.{field}"


def test_defaults_of_window_and_buffer_follow_the_limits_without_a_word() -> None:
    config = server(limits={"on_limit": "reject", "kv": {"max_window": 4, "min_buffer": 256}})
    decision = decide(config, {"kv": {"keep": 0.5}})
    assert decision.kv is not None
    assert (decision.kv.window, decision.kv.buffer, decision.clamped) == (4, 256, ())


def test_the_largest_window_is_over_all_tenants() -> None:
    tenants = {hash_key("a" * 20): {"limits": {"kv": {"max_window": 512}}}, hash_key("b" * 20): {}}
    assert PruneConfig().largest_window == 64
    assert PruneConfig.model_validate({"tenants": tenants}).largest_window == 512
    assert PruneConfig.model_validate({"limits": {"kv": {"max_window": 16}}}).largest_window == 16
