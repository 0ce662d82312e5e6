"""Strategies that look into the tower are refused where it cannot be looked into."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_prune.budget.canonical import VisualSpec, canonical
from vllm_prune.budget.errors import CAUSE_NAMES, Finding
from vllm_prune.budget.fields import parse_visual
from vllm_prune.support.visual import config_refusals, tower_refusal, unsupported_model
from vllm_prune.support.workers import KvWorkers, remember_workers
from vllm_prune.visual.models.table import FAMILIES
from vllm_prune.visual.scorers.stts.files import PLACE, save
from vllm_prune.visual.scorers.stts.model import Scorer, Shape


def config(
    graphs: bool = False,
    compiled: bool = False,
    data: bool = False,
    backend: str | None = None,
    dtype: str | None = None,
    model: str = "nobody/nothing",
    depth: int = 6,
) -> Any:
    """The parts of a vLLM configuration that decide."""
    mm = SimpleNamespace(
        mm_encoder_tp_mode="data" if data else "weights", mm_encoder_attn_backend=backend, mm_encoder_attn_dtype=dtype
    )
    vision = SimpleNamespace(vision_config=SimpleNamespace(depth=depth, hidden_size=8, spatial_merge_size=2))
    return SimpleNamespace(
        compilation_config=SimpleNamespace(cudagraph_mm_encoder=graphs, compile_mm_encoder=compiled),
        model_config=SimpleNamespace(
            multimodal_config=mm,
            hf_config=vision,
            model=model,
            revision=None,
            architectures=["Qwen2_5_VLForConditionalGeneration"],
        ),
    )


def refused(served: Any, budget: VisualSpec) -> Finding:
    finding = tower_refusal(served, budget)
    assert finding is not None
    return finding


def spec(strategy: str, **options: Any) -> Any:
    return canonical(parse_visual({"keep": 0.5, "image": {"strategy": strategy, "options": options}, "video": None}))


@pytest.mark.parametrize("changes", [{"graphs": True}, {"compiled": True}, {"data": True}])
def test_a_hidden_tower(changes: dict[str, Any]) -> None:
    finding = refused(config(**changes), spec("recv_attn"))
    assert "recv_attn" in finding.text
    assert (finding.cause, finding.param) == ("hidden_tower", "pruning.visual.strategy")
    assert tower_refusal(config(**changes), spec("divprune")) is None


@pytest.mark.parametrize("changes", [{"compiled": True}, {"data": True}])
def test_a_tower_that_takes_no_cut(changes: dict[str, Any]) -> None:
    finding = refused(config(**changes), spec("divprune", where="tower"))
    assert (finding.cause, finding.param) == ("hidden_tower", "pruning.visual.options.where")


def test_encoder_graphs_take_a_cut(tmp_path: Path) -> None:
    save(Scorer(Shape(8, 2, 4, 2, 1)), tmp_path / PLACE)
    for name, options in (("divprune", {"where": "tower"}), ("stts", {})):
        assert tower_refusal(config(model=str(tmp_path), graphs=True), spec(name, **options)) is None


def test_an_open_tower() -> None:
    for name, options in (("recv_attn", {}), ("divprune", {"where": "tower", "after": 5}), ("uniform", {})):
        assert tower_refusal(config(), spec(name, **options)) is None


def test_options_decide_which_signals_are_needed() -> None:
    hidden = config(compiled=True)
    assert refused(hidden, spec("idpruner", importance="attention")).cause == "hidden_tower"
    assert refused(hidden, spec("idpruner", importance="selector")).cause == "selector"
    assert tower_refusal(hidden, spec("idpruner")) is None


def test_a_cut_behind_the_last_block() -> None:
    finding = refused(config(), spec("divprune", where="tower", after=6))
    assert "at most 5" in finding.text
    assert (finding.cause, finding.param) == ("tower_depth", "pruning.visual.options.after")
    assert tower_refusal(config(), spec("divprune", where="tower")) is None
    assert tower_refusal(config(depth=2), spec("divprune", where="tower")) is None
    assert tower_refusal(config(), spec("divprune", where="embed", after=6)) is None


def test_attention_of_more_blocks_than_attend_to_whole_frames() -> None:
    served = config(depth=6)
    served.model_config.hf_config.vision_config.fullatt_block_indexes = [1, 4, 9]
    for options in ({"tower_blocks": 2}, {"skip_blocks": 1}, {"tower_blocks": None}):
        assert tower_refusal(served, spec("recv_attn", **options)) is None
    for options, field, most in (
        ({"tower_blocks": 3}, "tower_blocks", 2),
        ({"tower_blocks": 2, "skip_blocks": 1}, "tower_blocks", 1),
        ({"tower_blocks": None, "skip_blocks": 2}, "skip_blocks", 1),
    ):
        finding = refused(served, spec("vtc_cls", **options))
        assert finding.param == f"pruning.visual.options.{field}"
        assert f"2 blocks that attend to whole frames; give at most {most}" in finding.text
    assert tower_refusal(config(depth=6), spec("recv_attn", tower_blocks=6)) is None
    assert tower_refusal(served, spec("idpruner", tower_blocks=6)) is None


def test_several_positions_where_every_worker_can() -> None:
    budget = spec("vqtoken_kmeans", positions=8)
    finding = refused(config(), budget)
    assert (finding.cause, finding.param) == ("positions", "pruning.visual.options.positions")
    assert "vllm-prune serve" in finding.text
    report = {"kv": {"findings": [], "offers": []}}
    able, unable, asked = config(), config(), config()
    remember_workers(able, KvWorkers.of([{**report, "one_position": None}] * 2))
    remember_workers(unable, KvWorkers.of([{**report, "one_position": None}, {**report, "one_position": "it is odd"}]))
    remember_workers(asked, KvWorkers.of([]))
    assert tower_refusal(able, budget) is None
    assert "it is odd; use positions: 1" in refused(unable, budget).text
    assert refused(asked, budget).cause == "positions"
    for served in (config(), unable):
        assert tower_refusal(served, spec("vqtoken_kmeans")) is None
    molmo = of_family("Molmo2ForConditionalGeneration")
    remember_workers(molmo, KvWorkers.of([report]))
    assert "place in the pruned prompt" in refused(molmo, budget).text


def test_a_model_without_an_adapter_takes_no_cut() -> None:
    for served in (of_family("LlamaForCausalLM"), config()):
        served.model_config.multimodal_config = None
        finding = refused(served, spec("divprune", where="tower"))
        assert (finding.cause, finding.param) == ("adapter", "pruning.visual")
    finding = refused(of_family("LlamaForCausalLM"), spec("divprune", where="tower"))
    assert "LlamaForCausalLM has none" in finding.text


def test_a_backend_that_takes_no_cut() -> None:
    finding = refused(config(backend="AttentionBackendEnum.FLASHINFER"), spec("uniform", where="tower"))
    assert (finding.cause, finding.param) == ("tower_backend", "pruning.visual.options.where")
    assert tower_refusal(config(backend="AttentionBackendEnum.FLASHINFER"), spec("uniform")) is None


def test_a_scorer_has_to_be_there_and_to_fit(tmp_path: Path) -> None:
    finding = refused(config(model=str(tmp_path)), spec("stts"))
    assert "stts/scorer.safetensors" in finding.text
    assert "stts: {scorer: FILE}" in finding.text
    assert (finding.cause, finding.param) == ("scorer", "pruning.visual.strategy")
    save(Scorer(Shape(8, 2, 4, 2, 5)), tmp_path / PLACE)
    assert tower_refusal(config(model=str(tmp_path)), spec("stts")) is None
    save(Scorer(Shape(8, 2, 4, 2, 6)), tmp_path / PLACE)
    assert "6 blocks" in refused(config(model=str(tmp_path)), spec("stts")).text


@pytest.mark.parametrize(
    "changes",
    [{"compiled": True}, {"data": True}, {"backend": "FLASHINFER"}, {"dtype": "fp8"}],
)
def test_a_scorer_needs_an_open_tower(changes: dict[str, Any], tmp_path: Path) -> None:
    save(Scorer(Shape(8, 2, 4, 2, 1)), tmp_path / PLACE)
    assert tower_refusal(config(model=str(tmp_path)), spec("stts")) is None
    finding = refused(config(model=str(tmp_path), **changes), spec("stts"))
    assert "name another one" in finding.text
    assert finding.cause in ("hidden_tower", "tower_backend")
    assert finding.param == "pruning.visual.strategy"


def of_family(architecture: str, **changes: Any) -> Any:
    served = config(**changes)
    served.model_config.architectures = [architecture]
    return served


def test_what_an_adapter_does_not_give_is_refused_by_name() -> None:
    generic = of_family("InternVLForConditionalGeneration")
    for name, words in (("recv_attn", "attention inside"), ("stts", "a cut inside"), ("gui_dedup", "pixels")):
        finding = refused(generic, spec(name))
        assert (finding.cause, finding.param) == ("signal", "pruning.visual.strategy")
        assert name in finding.text
        assert words in finding.text
        assert "InternVL (HF)" in finding.text
    finding = refused(generic, spec("divprune", where="tower"))
    assert (finding.cause, finding.param) == ("hidden_tower", "pruning.visual.options.where")
    assert tower_refusal(generic, spec("divprune")) is None
    assert tower_refusal(of_family("Qwen2VLForConditionalGeneration"), spec("gui_dedup")) is None
    assert tower_refusal(of_family("Qwen3_5ForConditionalGeneration"), spec("recv_attn")) is None


def test_a_model_without_an_adapter() -> None:
    finding = unsupported_model(SimpleNamespace(architectures=["KimiK25ForConditionalGeneration"]))
    assert finding.cause == "adapter"
    assert f"KimiK25ForConditionalGeneration has none; supported: {', '.join(sorted(FAMILIES))}" in finding.text
    assert "MTP" not in finding.text
    assert "this model has none" in unsupported_model(SimpleNamespace(architectures=None)).text


def whole_config(**changes: Any) -> Any:
    """The parts of a vLLM configuration that decide about visual pruning as a whole."""
    mm = SimpleNamespace(is_multimodal_pruning_enabled=lambda: changes.get("rate", False), mm_encoder_tp_mode="data")
    speculative = changes.get("speculative")
    return SimpleNamespace(
        model_config=SimpleNamespace(multimodal_config=changes.get("mm", mm), architectures=changes.get("served")),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=changes.get("pipeline", 1), use_ubatching=changes.get("dbo", False)
        ),
        speculative_config=_speculative(speculative, changes.get("drafter")) if speculative else None,
        compilation_config=SimpleNamespace(cudagraph_mm_encoder=changes.get("graphs", False)),
        ec_transfer_config=changes.get("transfer"),
        lora_config=SimpleNamespace(enable_tower_connector_lora=True) if changes.get("lora") else None,
    )


def _speculative(method: str, drafter: str | None) -> Any:
    draft = None if drafter is None else SimpleNamespace(architectures=[drafter])
    return SimpleNamespace(method=method, draft_model_config=draft)


@pytest.mark.parametrize(
    ("changes", "cause", "word"),
    [
        ({"rate": True}, "vllm_pruning", "video-pruning-rate"),
        ({"pipeline": 2}, "pipeline_parallel", "first rank"),
        ({"dbo": True}, "micro_batches", "DBO"),
        ({"speculative": "eagle3"}, "speculative", "eagle3"),
        ({"speculative": "mtp", "drafter": "DeepSeekMTPModel"}, "speculative", "Qwen3_5MTP"),
        ({"speculative": "mtp"}, "speculative", "mtp"),
        ({"transfer": object()}, "encoder_transfer", "disaggregation"),
        ({"lora": True}, "tower_lora", "LoRA"),
        ({"graphs": True}, "encoder_graphs", "unpruned size"),
        ({"mm": None}, "no_media", "text only"),
    ],
)
def test_a_configuration_without_visual_pruning(changes: dict[str, Any], cause: str, word: str) -> None:
    [finding] = config_refusals(whole_config(**changes))
    assert (finding.cause, finding.param) == (cause, "pruning.visual")
    assert word in finding.text
    assert finding.text.startswith(CAUSE_NAMES[finding.cause])


def test_what_is_supported_is_not_refused() -> None:
    assert config_refusals(whole_config()) == []
    assert config_refusals(whole_config(speculative="ngram")) == []
    assert config_refusals(whole_config(speculative="mtp", drafter="Qwen3_5MTP")) == []


def test_encoder_graphs_bypass_a_generic_adapter() -> None:
    served = ["InternVLForConditionalGeneration"]
    mm = SimpleNamespace(is_multimodal_pruning_enabled=lambda: False, mm_encoder_tp_mode="weights")
    [finding] = config_refusals(whole_config(mm=mm, graphs=True, served=served))
    assert finding.cause == "encoder_graphs"
    assert "InternVL (HF)" in finding.text
    assert config_refusals(whole_config(mm=mm, graphs=True, served=["Qwen3VLForConditionalGeneration"])) == []
    assert config_refusals(whole_config(mm=mm, served=served)) == []
