"""Strategies that look into the tower are refused where it cannot be looked into."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_prune.budget.canonical import canonical
from vllm_prune.budget.fields import parse_visual
from vllm_prune.support.visual import tower_refusal
from vllm_prune.visual.scorers.stts.files import PLACE, save
from vllm_prune.visual.scorers.stts.model import Scorer, Shape


def config(
    graphs: bool = False,
    compiled: bool = False,
    data: bool = False,
    backend: str | None = None,
    dtype: str | None = None,
    model: str = "nobody/nothing",
) -> Any:
    """The parts of a vLLM configuration that decide."""
    mm = SimpleNamespace(
        mm_encoder_tp_mode="data" if data else "weights", mm_encoder_attn_backend=backend, mm_encoder_attn_dtype=dtype
    )
    vision = SimpleNamespace(vision_config=SimpleNamespace(depth=6, hidden_size=8, spatial_merge_size=2))
    return SimpleNamespace(
        compilation_config=SimpleNamespace(cudagraph_mm_encoder=graphs, compile_mm_encoder=compiled),
        model_config=SimpleNamespace(multimodal_config=mm, hf_config=vision, model=model, revision=None),
    )


def spec(strategy: str, **options: Any) -> Any:
    return canonical(parse_visual({"keep": 0.5, "image": {"strategy": strategy, "options": options}, "video": None}))


@pytest.mark.parametrize("changes", [{"graphs": True}, {"compiled": True}, {"data": True}])
def test_a_hidden_tower(changes: dict[str, Any]) -> None:
    text, param = tower_refusal(config(**changes), spec("recv_attn")) or ("", "")
    assert "recv_attn" in text
    assert param == "pruning.visual.strategy"
    assert (tower_refusal(config(**changes), spec("divprune", where="tower")) or ("", ""))[1].endswith("options.where")
    assert tower_refusal(config(**changes), spec("divprune")) is None


def test_an_open_tower() -> None:
    for name, options in (("recv_attn", {}), ("divprune", {"where": "tower", "after": 5}), ("uniform", {})):
        assert tower_refusal(config(), spec(name, **options)) is None


def test_a_cut_behind_the_last_block() -> None:
    text, param = tower_refusal(config(), spec("divprune", where="tower", after=6)) or ("", "")
    assert "at most 5" in text
    assert param == "pruning.visual.options.after"
    assert tower_refusal(config(), spec("divprune", where="embed", after=6)) is None


def test_a_backend_that_takes_no_cut() -> None:
    assert tower_refusal(config(backend="AttentionBackendEnum.FLASHINFER"), spec("uniform", where="tower"))
    assert tower_refusal(config(backend="AttentionBackendEnum.FLASHINFER"), spec("uniform")) is None


def test_a_scorer_has_to_be_there_and_to_fit(tmp_path: Path) -> None:
    text, param = tower_refusal(config(model=str(tmp_path)), spec("stts")) or ("", "")
    assert "stts/scorer.safetensors" in text
    assert "stts: {scorer: FILE}" in text
    assert param == "pruning.visual.strategy"
    save(Scorer(Shape(8, 2, 4, 2, 5)), tmp_path / PLACE)
    assert tower_refusal(config(model=str(tmp_path)), spec("stts")) is None
    save(Scorer(Shape(8, 2, 4, 2, 6)), tmp_path / PLACE)
    assert "6 blocks" in (tower_refusal(config(model=str(tmp_path)), spec("stts")) or ("", ""))[0]


@pytest.mark.parametrize(
    "changes",
    [{"graphs": True}, {"compiled": True}, {"data": True}, {"backend": "FLASHINFER"}, {"dtype": "fp8"}],
)
def test_a_scorer_needs_an_open_tower(changes: dict[str, Any], tmp_path: Path) -> None:
    save(Scorer(Shape(8, 2, 4, 2, 1)), tmp_path / PLACE)
    assert tower_refusal(config(model=str(tmp_path)), spec("stts")) is None
    text, param = tower_refusal(config(model=str(tmp_path), **changes), spec("stts")) or ("", "")
    assert "name another one" in text
    assert param == "pruning.visual.strategy"
