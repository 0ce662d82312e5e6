from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from vllm_prune.budget.fields import DEFAULT_CHOICES, DEFAULT_KV_CHOICES
from vllm_prune.config.load import PruneConfig
from vllm_prune.config.tenants import hash_key
from vllm_prune.policy import decide


def server(chosen: dict[str, Any], **sections: Any) -> PruneConfig:
    return PruneConfig.model_validate({"default_strategies": chosen, **sections})


def test_without_a_choice_of_the_operators() -> None:
    config = server({})
    assert config.visual_choices() == {modality: tuple(choices) for modality, choices in DEFAULT_CHOICES.items()}
    assert config.kv_choices() == DEFAULT_KV_CHOICES


def test_the_operators_choice_is_that_of_budgets_without_a_strategy() -> None:
    chosen = {
        "image": {"strategy": "uniform", "options": {"where": "tower", "after": 2}},
        "video": {"strategy": "evs"},
        "kv": {"strategy": "streaming", "options": {"sinks": 2}},
    }
    config = server(chosen, limits={"max_tokens": 9})
    decision = decide(config, {"visual": {"keep": 0.5}, "kv": {"keep": 0.5}})
    named = {
        "visual": {"image": {"keep": 0.5, **chosen["image"]}, "video": {"keep": 0.5, **chosen["video"]}},
        "kv": {"keep": 0.5, **chosen["kv"]},
    }
    assert decision == decide(config, named)
    assert decision.kv_otherwise == ()
    # Also where the operator's limits prune without a budget.
    assert decision.spec is not None
    unnamed = decide(server(chosen, limits={"max_tokens": 9, "max_keep": 0.5})).spec
    assert unnamed is not None
    assert unnamed.image == decision.spec.image
    capped = decide(config).spec
    assert capped is not None
    assert capped.part_of_cap("image").with_options() == capped.capped_image
    assert capped.capped_image is not None
    assert capped.capped_image.options == '{"after":2,"where":"tower"}'


def test_options_of_a_request_come_first() -> None:
    config = server({"kv": {"strategy": "snapkv", "options": {"mode": "max", "pooling": 7}}})
    spec = decide(config, {"kv": {"keep": 0.5, "options": {"pooling": 3}}}).kv
    assert spec is not None
    assert spec.options == '{"mode":"max","pooling":3,"probe":"last"}'
    named = decide(config, {"kv": {"keep": 0.5, "strategy": "snapkv"}}).kv
    assert named is not None
    assert '"mode":"avg"' in named.options


def test_a_tenant_whose_limits_forbid_the_choice_gets_what_they_allow() -> None:
    tenants = {hash_key("a" * 20): {"name": "small", "limits": {"kv": {"strategies": ("streaming",)}}}}
    config = server({"kv": {"strategy": "knorm"}}, tenants=tenants)
    (tenant,) = config.tenants.values()
    assert [choice.strategy for choice in config.for_tenant(tenant).kv_choices()] == ["streaming"]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"image": {"strategy": "nothing"}}, "image: unknown strategy 'nothing'"),
        ({"image": {"strategy": "none"}}, "image: unknown strategy 'none'"),
        ({"image": {"strategy": "evs"}}, "image: strategy 'evs' does not prune images"),
        ({"video": {"strategy": "snapkv"}}, "video: unknown strategy 'snapkv'"),
        ({"kv": {"strategy": "divprune"}}, "kv: unknown strategy 'divprune'"),
        ({"video": {"strategy": "divprune", "options": {"where": "attic"}}}, "video: options.where: Input should be"),
        ({"kv": {"strategy": "knorm", "options": {"x": 1}}}, "kv: options.x: Extra inputs"),
        ({"kv": {"options": {}}}, "kv.strategy"),
        ({"kv": {"strategy": "knorm", "keep": 0.5}}, "kv.keep"),
        ({"audio": {"strategy": "knorm"}}, "audio"),
    ],
)
def test_choices_that_make_no_sense(chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        server(chosen)
    assert words in str(caught.value)


def test_a_choice_that_the_limits_forbid_is_an_error_at_start() -> None:
    with pytest.raises(ValidationError, match="default_strategies: 'divprune' is not among limits: uniform"):
        server({"video": {"strategy": "divprune"}}, limits={"strategies": ("uniform",)})
    with pytest.raises(ValidationError, match="default_strategies: 'knorm' is not among limits: snapkv"):
        server({"kv": {"strategy": "knorm"}}, limits={"kv": {"strategies": ("snapkv",)}})
