"""What a request leaves to the server is settled for what is served, and never refused."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_prune.budget.canonical import Part, VisualSpec, canonical
from vllm_prune.budget.fields import parse_visual
from vllm_prune.config.load import PruneConfig
from vllm_prune.config.worker_facts import KEY
from vllm_prune.policy import Decision, decide
from vllm_prune.support import kv
from vllm_prune.support.choices import in_force, settled, settled_spec
from vllm_prune.support.visual import tower_refusal
from vllm_prune.support.workers import KvWorkers, remember_workers
from vllm_prune.visual.models.table import FAMILIES

QWEN, GENERIC = "Qwen2_5_VLForConditionalGeneration", "InternVLForConditionalGeneration"
EVERYTHING = ("queries", "values", "saliency", "rotation", "coordinates", "moments")


def served(
    architecture: str = QWEN,
    offers: tuple[str, ...] = EVERYTHING,
    depth: int = 6,
    facts: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    """The parts of a vLLM configuration that decide."""
    mm = SimpleNamespace(
        mm_encoder_tp_mode=changes.get("tp_mode", "weights"),
        mm_encoder_attn_backend=changes.get("backend"),
        mm_encoder_attn_dtype=None,
    )
    tower = SimpleNamespace(depth=depth, hidden_size=8, spatial_merge_size=2)
    config = SimpleNamespace(
        additional_config={KEY: facts or {}},
        compilation_config=SimpleNamespace(
            cudagraph_mm_encoder=changes.get("graphs", False), compile_mm_encoder=changes.get("compiled", False)
        ),
        model_config=SimpleNamespace(
            multimodal_config=None if changes.get("text") else mm,
            hf_config=SimpleNamespace(vision_config=tower),
            model="nobody/nothing",
            revision=None,
            architectures=[architecture],
            get_head_size=lambda: 64,
        ),
    )
    remember_workers(config, KvWorkers((), frozenset(offers)))
    return config


def spec(**options: Any) -> VisualSpec:
    return canonical(parse_visual({"keep": 0.5, "strategy": "divprune", "options": options}))


OPEN, TOWER, EMBED = spec(where="auto"), spec(where="tower"), spec(where="embed")
CLOSED: dict[str, dict[str, Any]] = {
    "a compiled encoder": {"compiled": True},
    "data-parallel encoding": {"tp_mode": "data"},
    "a backend without a cut": {"backend": "AttentionBackendEnum.FLASHINFER"},
    "an adapter without a cut": {"architecture": GENERIC},
    "a text model": {"architecture": "LlamaForCausalLM", "text": True},
}


def test_a_place_left_open_is_inside_a_tower_that_can_be_cut() -> None:
    assert settled_spec(OPEN, served()) == TOWER
    assert settled_spec(spec(where="auto", after=5), served()) == spec(where="tower", after=5)
    assert settled_spec(OPEN, served(depth=1)) == TOWER
    assert settled_spec(OPEN, served(graphs=True)) == TOWER
    for named in (TOWER, EMBED):
        assert settled_spec(named, served()) == named


@pytest.mark.parametrize("changes", CLOSED.values(), ids=CLOSED)
def test_elsewhere_it_is_behind_it_and_nothing_is_refused(changes: dict[str, Any]) -> None:
    here = served(**changes)
    assert tower_refusal(here, TOWER) is not None
    assert settled_spec(OPEN, here) == EMBED
    assert settled_spec(spec(where="auto", after=2), here) == EMBED
    assert tower_refusal(here, settled_spec(OPEN, here)) is None


def test_a_cut_behind_the_last_block_gives_way() -> None:
    assert settled_spec(spec(where="auto", after=6), served(depth=6)) == EMBED


def test_a_memory_of_whole_towers_is_made_use_of() -> None:
    assert settled_spec(OPEN, served(facts={"feature_cache_bytes": 1})) == EMBED
    assert settled_spec(TOWER, served(facts={"feature_cache_bytes": 1})) == TOWER


def test_every_part_is_settled() -> None:
    part = Part("divprune", '{"after":null,"where":"auto"}')
    settled_parts = settled_spec(VisualSpec(part, None, 7, 9, capped_image=part, capped_video=part), served())
    for one in (settled_parts.image, settled_parts.capped_image, settled_parts.capped_video):
        assert one is not None
        assert json.loads(one.options) == {"after": None, "where": "tower"}
    assert settled_parts.video is None


def by(*strategies: str) -> Decision:
    specs = [decide(PruneConfig(), {"kv": {"keep": 0.2, "strategy": name}}).kv for name in strategies]
    first, *others = [one for one in specs if one is not None]
    return Decision(None, kv=first, kv_otherwise=tuple(others))


def test_the_cache_gets_the_first_strategy_that_can_run() -> None:
    both = by("gui_kv", "snapkv")
    assert settled(both, served()) == by("gui_kv")
    assert settled(both, served(offers=("queries", "values"))) == by("snapkv")
    # What a request names is not replaced.
    assert settled(by("gui_kv"), served(offers=("queries",))) == by("gui_kv")


def test_where_no_strategy_can_run_the_first_says_why() -> None:
    nothing = served(offers=())
    decision = settled(by("gui_kv", "snapkv"), nothing)
    assert decision.kv is not None
    finding = kv.missing(decision.kv, nothing)
    assert finding is not None
    assert "gui_kv" in finding.text


def test_a_request_without_budgets_stays_as_it_is() -> None:
    assert settled(Decision(None), served()) == Decision(None)


def never_refused(config: PruneConfig, here: Any) -> Decision:
    decision = settled(decide(config, {"visual": {"keep": 0.5}, "kv": {"keep": 0.2}}), here)
    assert decision.spec is not None
    assert decision.kv is not None
    assert decision.kv_otherwise == ()
    assert tower_refusal(here, decision.spec) is None
    assert kv.missing(decision.kv, here) is None
    return decision


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_default_runs_on_every_family(architecture: str) -> None:
    never_refused(PruneConfig(), served(architecture))
    never_refused(PruneConfig(), served(architecture, offers=("queries", "values")))


@pytest.mark.parametrize("changes", CLOSED.values(), ids=CLOSED)
def test_a_default_runs_under_every_configuration(changes: dict[str, Any]) -> None:
    never_refused(PruneConfig(), served(**changes))


def test_what_is_in_force_can_be_asked() -> None:
    chosen = {"video": {"strategy": "uniform", "options": {"where": "auto"}}, "kv": {"strategy": "streaming"}}
    config = PruneConfig.model_validate({"default_strategies": chosen, "limits": {"max_keep": 0.1}})
    for architecture, place in ((QWEN, "tower"), (GENERIC, "embed")):
        names = in_force(config, served(architecture))
        assert set(names) == {"image", "video", "kv"}
        assert names["video"] == {"strategy": "uniform", "options": {"after": None, "where": place}}
        assert names["kv"] == {"strategy": "streaming", "options": {"sinks": 4}}
    nothing = PruneConfig.model_validate({"limits": {"strategies": ("none",), "kv": {"strategies": ("knorm",)}}})
    assert in_force(nothing, served())["image"] == {"strategy": "none", "options": {}}
    decision = never_refused(PruneConfig(), served())
    assert decision.kv is not None
    assert in_force(PruneConfig(), served())["kv"]["strategy"] == decision.kv.strategy
