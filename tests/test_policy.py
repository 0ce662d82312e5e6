from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vllm_prune.budget.canonical import canonical_kv
from vllm_prune.budget.errors import BudgetError
from vllm_prune.budget.fields import KvField, PruningField, VisualField
from vllm_prune.budget.kv import KvSpec
from vllm_prune.catalogue import KV
from vllm_prune.config.load import Defaults, Limits, PruneConfig, configuration
from vllm_prune.config.tenants import Tenant
from vllm_prune.policy import Decision, config_for, decide, field_of_xargs, requested_parts


def policy(limits: dict[str, Any] | None = None, default: dict[str, Any] | None = None) -> Callable[..., Decision]:
    return partial(
        decide,
        PruneConfig(
            defaults=Defaults(visual=VisualField(**default) if default else None),
            limits=Limits(**(limits or {})),
            presets={
                "fast": PruningField(visual=VisualField(keep=0.25, strategy="uniform")),
                "off": PruningField(visual=None),
            },
        ),
    )


def kept(decision: Decision) -> str | None:
    part = decision.spec.image if decision.spec else None
    return part.keep if part else None


def test_absent_parts_take_the_default_and_null_turns_off() -> None:
    server = policy(default={"keep": 0.5, "strategy": "uniform"})
    assert kept(server()) == "0.5"
    assert kept(server({})) == "0.5"
    assert kept(server({"kv": None})) == "0.5"
    assert server({"visual": None}).spec is None
    assert kept(server({"visual": {"keep": 0.1, "strategy": "uniform"}})) == "0.1"


def test_presets_by_name_and_by_model() -> None:
    server = policy(default={"keep": 0.5, "strategy": "uniform"})
    assert kept(server("fast")) == "0.25"
    assert kept(server(None, "fast")) == "0.25"
    assert kept(server({"visual": {"keep": 0.1, "strategy": "uniform"}}, "fast")) == "0.1"
    assert server("off").spec is None
    with pytest.raises(BudgetError) as caught:
        server("slow")
    assert caught.value.param == "pruning"
    with pytest.raises(BudgetError) as caught:
        server(None, "slow")
    assert caught.value.param == "model"


def test_kv_budgets_are_canonical() -> None:
    asked = {"kv": {"keep": 0.2, "strategy": "streaming"}}
    spec = policy()(asked).kv
    assert spec == KvSpec("streaming", '{"sinks":4}', keep="0.2")
    assert policy()({"kv": {**asked["kv"], "keep": 0.20, "options": {"sinks": 4}}}).kv == spec
    assert policy()({"kv": {"keep": 1.0}}).kv is None
    assert policy()({"kv": {"strategy": "none"}}).kv is None
    for name in ("snapkv", "gui_kv"):
        options = KV.create(name).options.model_dump_json()
        named = policy()({"kv": {"max_tokens": 100, "strategy": name}}).kv
        assert named == KvSpec(name, canonical_kv(KvField(keep=0.5, strategy=name)).options, max_tokens=100)
        assert json.loads(named.options) == json.loads(options)
    assert policy()().kv is None


@pytest.mark.parametrize(
    ("kv", "param"),
    [
        ({}, "keep"),
        ({"keep": 0.5, "max_tokens": 5}, "keep"),
        ({"keep": 0.5, "strategy": "magic"}, "strategy"),
        ({"keep": 0.5, "strategy": "none"}, "strategy"),
        ({"keep": 0.5, "strategy": "streaming", "options": {"sinks": -1}}, "options.sinks"),
        ({"keep": 0.5, "options": {"x": 1}}, "options.x"),
        ({"keep": 0.5, "window": 0}, "window"),
        ({"keep": 0.5, "buffer": True}, "buffer"),
        ({"keep": float("nan")}, "keep"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"keep": 0.5, "layers": 3}, "layers"),
    ],
)
def test_bad_kv_budgets_name_the_field(kv: dict[str, Any], param: str) -> None:
    with pytest.raises(BudgetError) as caught:
        policy()({"kv": kv})
    assert caught.value.param == f"pruning.kv.{param}"


def test_kv_limits() -> None:
    limits = {"kv": {"min_keep": 0.2, "max_tokens": 50, "strategies": ["gui_kv", "snapkv"]}}
    server = partial(decide, PruneConfig.model_validate({"limits": limits}))
    low = server({"kv": {"keep": 0.1}})
    assert low.kv is not None
    assert low.kv.keep == "0.2"
    assert low.clamped == ({"param": "pruning.kv.keep", "requested": 0.1, "applied": 0.2, "reason": "min_keep"},)
    high = server({"kv": {"max_tokens": 90}})
    assert high.kv is not None
    assert high.kv.max_tokens == 50
    assert high.clamped[0]["reason"] == "max_tokens"
    with pytest.raises(BudgetError, match="not allowed"):
        server({"kv": {"keep": 0.5, "strategy": "streaming"}})
    strict = partial(decide, PruneConfig.model_validate({"limits": {**limits, "on_limit": "reject"}}))
    with pytest.raises(BudgetError, match="operator's limit"):
        strict({"kv": {"keep": 0.1}})


def test_limits_clamp_and_say_so() -> None:
    server = policy({"min_keep": 0.2, "max_keep": 0.8})
    low = server({"visual": {"keep": 0.1, "strategy": "uniform"}})
    assert kept(low) == "0.2"
    assert low.clamped == ({"param": "pruning.visual.keep", "requested": 0.1, "applied": 0.2, "reason": "min_keep"},)
    high = server({"visual": {"keep": 0.9, "strategy": "uniform"}})
    assert kept(high) == "0.8"
    inside = server({"visual": {"keep": 0.5, "strategy": "uniform"}})
    assert (kept(inside), inside.clamped) == ("0.5", ())
    unasked = server()
    assert kept(unasked) == "0.8"
    assert unasked.clamped[0]["requested"] == 1.0


def test_limits_reject_when_told_to() -> None:
    server = policy({"min_keep": 0.2, "on_limit": "reject"})
    with pytest.raises(BudgetError) as caught:
        server({"visual": {"keep": 0.1, "strategy": "uniform"}})
    assert caught.value.param == "pruning.visual.keep"


def test_strategies_outside_the_list_are_refused_never_replaced() -> None:
    server = policy({"strategies": ("random",)})
    with pytest.raises(BudgetError) as caught:
        server({"visual": {"keep": 0.5, "strategy": "uniform"}})
    assert caught.value.param == "pruning.visual.strategy"


def test_token_limits() -> None:
    server = policy({"min_tokens": 10, "max_tokens": 100})
    low = server({"visual": {"max_tokens": 2, "strategy": "uniform"}})
    assert low.spec is not None
    assert (low.spec.max_tokens, low.spec.limit) == (10, 100)
    high = server({"visual": {"max_tokens": 5000, "strategy": "uniform"}})
    assert high.spec is not None
    assert high.spec.max_tokens == 100


def test_xargs_carry_the_field_as_text() -> None:
    text = '{"visual": {"keep": 0.3, "strategy": "uniform"}}'
    server = policy()
    assert kept(server(field_of_xargs(text))) == "0.3"
    assert kept(server(field_of_xargs("fast"))) == "0.25"
    for wrong in (0.5, '{"visual": ', '{"visual":' * 5000):
        with pytest.raises(BudgetError) as caught:
            field_of_xargs(wrong)
        assert caught.value.param == "vllm_xargs.pruning"


def test_deciding_changes_nothing_and_depends_on_nothing_else() -> None:
    server = policy({"min_keep": 0.2})
    field = {"visual": {"keep": 0.1, "strategy": "uniform"}}
    first = server(field)
    assert field == {"visual": {"keep": 0.1, "strategy": "uniform"}}
    assert server(field) == first


def test_return_kept_comes_with_the_part_that_holds_it() -> None:
    server = policy(default={"keep": 0.5, "return_kept": True})
    assert server().return_kept
    assert not server({"visual": {"keep": 0.5}}).return_kept
    assert not server("fast").return_kept
    assert policy()({"visual": {"keep": 0.5, "return_kept": True}}).return_kept
    assert policy()({"visual": {"strategy": "none", "return_kept": True}}) == Decision(None, return_kept=True)


@pytest.mark.parametrize(
    ("raw", "preset", "parts"),
    [
        (None, None, set()),
        ({"visual": {"keep": 0.5}}, None, {"visual"}),
        ({"visual": None, "kv": {"keep": 0.5}}, None, {"kv"}),
        ("fast", None, {"visual"}),
        (None, "fast", {"visual"}),
        ({"kv": {"keep": 0.5}}, "fast", {"visual", "kv"}),
        ({"visual": None}, "fast", set()),
    ],
)
def test_what_a_request_asks_for_by_itself(raw: Any, preset: str | None, parts: set[str]) -> None:
    config = PruneConfig(
        defaults=Defaults(visual=VisualField(keep=0.5)),
        presets={"fast": PruningField(visual=VisualField(keep=0.25, strategy="uniform"))},
    )
    assert requested_parts(config, raw, preset) == parts


def test_a_tenant_has_its_own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prune.yaml"
    file.write_text("limits: {min_keep: 0.1}\n")
    monkeypatch.setenv("VLLM_PRUNE_CONFIG", str(file))
    configuration.cache_clear()
    try:
        tenant = Tenant(name="beta", limits=Limits(max_keep=0.5))
        assert config_for(None).limits.max_keep is None
        assert config_for(tenant).limits.max_keep == 0.5
        assert config_for(tenant).limits.min_keep == 0.1
    finally:
        configuration.cache_clear()


def test_a_preset_by_name_comes_before_the_models_and_keeps_its_other_parts() -> None:
    config = PruneConfig(
        presets={
            "fast": PruningField(visual=VisualField(keep=0.25, strategy="uniform"), kv=KvField(keep=0.3)),
            "slow": PruningField(visual=VisualField(keep=0.5, strategy="uniform")),
        }
    )
    both = decide(config, "slow", "fast")
    assert kept(both) == "0.5"
    assert both.kv is not None
    assert both.kv.keep == "0.3"
    assert requested_parts(config, "slow", "fast") == {"visual", "kv"}
