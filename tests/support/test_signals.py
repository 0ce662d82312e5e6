"""A signal is one entry in each table, and a name that one of them lacks is an error here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from safetensors.torch import save_file

from tests.gate_weights import gate_weights
from vllm_prune.catalogue import KV, VISUAL
from vllm_prune.config import load
from vllm_prune.config.load import PruneConfig
from vllm_prune.kv import signals as kv_providers
from vllm_prune.signals import KvSignal, VisualSignal
from vllm_prune.support import signals
from vllm_prune.support.workers import KvWorkers, remember_workers
from vllm_prune.visual.tower import signals as visual_providers


def test_the_tables_have_the_names_of_the_signals() -> None:
    assert set(signals.VISUAL) == set(visual_providers.PROVIDERS) == set(get_args(VisualSignal))
    assert set(signals.KV) == set(kv_providers.PROVIDERS) == set(get_args(KvSignal))


def test_strategies_need_signals_that_there_are() -> None:
    for name in VISUAL.names():
        assert set(signals.VISUAL) >= VISUAL.strategy_class(name).needs
    for name in KV.names():
        assert set(signals.KV) >= KV.strategy_class(name).needs


def served(**additional: Any) -> Any:
    """A model whose tower can be looked into."""
    mm = SimpleNamespace(mm_encoder_tp_mode="weights", mm_encoder_attn_backend=None)
    vision = SimpleNamespace(depth=2, hidden_size=8, spatial_merge_size=2, out_hidden_size=8)
    text = SimpleNamespace(hidden_size=8, num_attention_heads=2, num_hidden_layers=4)
    hf_config = SimpleNamespace(vision_config=vision, get_text_config=lambda: text)
    model = SimpleNamespace(multimodal_config=mm, hf_config=hf_config, model="nobody/nothing")
    return SimpleNamespace(
        model_config=model, compilation_config=SimpleNamespace(), additional_config={"vllm_prune": additional}
    )


def test_pixels_are_always_there() -> None:
    assert signals.VISUAL["pixels"](served(), "gui_dedup") is None


@pytest.fixture
def gates(tmp_path: Path) -> str:
    """A file of gates that fit the model of `served`."""
    save_file(gate_weights(4, 8, 16), tmp_path / "gates.safetensors")
    return str(tmp_path / "gates.safetensors")


@pytest.mark.parametrize("signal", get_args(KvSignal))
def test_a_kv_signal_is_there_where_every_worker_offers_it(signal: KvSignal, gates: str) -> None:
    one, other = ({"findings": [], "offers": offers} for offers in ([signal], [signal, "x"]))
    everywhere, nowhere = (served(prompt_queries=1, weights={"dyvte": gates}) for _ in range(2))
    remember_workers(everywhere, KvWorkers.of([{"kv": one}, {"kv": other}]))
    remember_workers(nowhere, KvWorkers.of([{"kv": one}, {"kv": {"findings": [], "offers": []}}]))
    assert signals.KV[signal](everywhere) is None
    finding = signals.KV[signal](nowhere)
    assert finding is not None
    assert signal in finding.text
    assert "name another one" in finding.text


def test_sums_over_prompts_need_memory_that_the_operator_reserves() -> None:
    finding = signals.KV["moments"](served())
    assert finding is not None
    assert finding.param == "pruning.kv.options"
    assert "kv.prompt_queries" in finding.text
    assert "queries: window" in finding.text


def test_gates_need_weights_that_fit(gates: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "configuration", lambda: PruneConfig())
    assert signals.KV["gates"](served(weights={"dyvte": gates})) is None
    save_file(gate_weights(5, 8, 16), tmp_path / "deeper.safetensors")
    for facts, words in (
        ({}, "weights: {dyvte: PATH}"),
        ({"weights": {"dyvte": f"{tmp_path}/none"}}, "does not exist; correct the path"),
        ({"weights": {"dyvte": f"{tmp_path}/deeper.safetensors"}}, "it has a gate behind layer 4"),
    ):
        finding = signals.KV["gates"](served(**facts))
        assert finding is not None
        assert (finding.cause, finding.param) == ("weights", "pruning.kv.strategy")
        assert words in finding.text
    monkeypatch.setattr(signals, "configuration", lambda: PruneConfig.model_validate({"weights": {"dyvte": gates}}))
    finding = signals.KV["gates"](served())
    assert finding is not None
    assert "the workers do not know of" in finding.text


@pytest.mark.parametrize(
    ("signal", "section"), [("scorer", {"stts": {"scorer": "x"}}), ("selector", {"vision_selector": {"weights": "x"}})]
)
def test_weights_that_the_workers_were_not_told_of(
    signal: VisualSignal, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "configuration", lambda: PruneConfig.model_validate(section))
    path = str(Path("x").absolute())
    finding = signals.VISUAL[signal](served(), "any")
    assert finding is not None
    assert "the workers do not know of" in finding.text
    argument = json.dumps({"vllm_prune": {signal: path}})
    assert f"--additional-config '{argument}'" in finding.text
    for facts in ({"launched": True, signal: path}, json.loads(argument)["vllm_prune"]):
        finding = signals.VISUAL[signal](served(**facts), "any")
        assert finding is not None
        assert "does not exist" in finding.text


def test_trained_layers_that_the_workers_were_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "configuration", lambda: PruneConfig.model_validate({"weights": {"qtsplus": "x"}}))
    path = str(Path("x").absolute())
    finding = signals.VISUAL["weights"](served(), "qtsplus")
    assert finding is not None
    assert "the workers do not know of" in finding.text
    argument = json.dumps({"vllm_prune": {"weights": {"qtsplus": path}}})
    assert f"--additional-config '{argument}'" in finding.text
    for facts in ({"launched": True, "weights": {"qtsplus": path}}, json.loads(argument)["vllm_prune"]):
        finding = signals.VISUAL["weights"](served(**facts), "qtsplus")
        assert finding is not None
        assert finding.cause == "weights"
        assert "the workers do not know of" not in finding.text


def test_nothing_is_said_of_weights_that_nobody_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "configuration", lambda: load.PruneConfig())
    for signal, words in (("scorer", "a scorer"), ("selector", "trained weights"), ("weights", "trained weights")):
        finding = signals.VISUAL[signal](served(), "qtsplus")  # type: ignore[index]
        assert finding is not None
        assert f"needs {words}" in finding.text
