"""Scorers on disk, and where they are looked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vllm_prune.visual.scorers.base import ScorerError
from vllm_prune.visual.scorers.stts.files import PLACE, load, locate, read_shape, save
from vllm_prune.visual.scorers.stts.model import Scorer, Shape
from vllm_prune.visual.scorers.stts.weights import STTS

SHAPE = Shape(8, 2, 4, 2, 1, "frame", "ffd")


def served(model: Path, **vision: int) -> Any:
    tower = SimpleNamespace(**{"hidden_size": 8, "spatial_merge_size": 2, "depth": 2, **vision})
    hf_config = SimpleNamespace(vision_config=tower)
    return SimpleNamespace(model_config=SimpleNamespace(model=str(model), revision=None, hf_config=hf_config))


def test_round_trip(tmp_path: Path) -> None:
    scorer = Scorer(SHAPE)
    save(scorer, tmp_path / PLACE)
    again = load(tmp_path / PLACE)
    assert again.shape == read_shape(tmp_path / PLACE) == SHAPE
    assert again.state_dict().keys() == scorer.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in scorer.state_dict().items())
    assert not any(parameter.requires_grad for parameter in again.parameters())
    names = {name.rsplit(".", 1)[0] for name in load_file(tmp_path / PLACE)}
    assert names == {*(f"pooler.w{x}" for x in "qkvo"), "mlp.w1", "mlp.w2", "mlp.w3"}


def test_the_default_dtype_of_a_serving_process_does_not_matter(tmp_path: Path) -> None:
    save(Scorer(SHAPE), tmp_path / "one.safetensors")
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert {p.dtype for p in load(tmp_path / "one.safetensors").parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


def test_files_that_are_no_scorers(tmp_path: Path) -> None:
    other, missing = tmp_path / "other.safetensors", tmp_path / "missing.safetensors"
    save_file({"x": torch.zeros(2)}, other)
    with pytest.raises(ScorerError, match="no metadata 'width'"):
        read_shape(other)
    with pytest.raises(ScorerError, match="cannot be read"):
        read_shape(missing)
    wrong = {key: str(value) for key, value in vars(SHAPE).items()}
    save_file({"x": torch.zeros(2)}, other, wrong)
    with pytest.raises(ScorerError, match="does not have the shape"):
        load(other)
    save_file({"x": torch.zeros(2)}, other, {**wrong, "heads": "3"})
    with pytest.raises(ScorerError, match="heads=3"):
        read_shape(other)


def test_the_operator_comes_first_then_the_checkpoint(tmp_path: Path) -> None:
    given = tmp_path / "given.safetensors"
    assert locate(str(tmp_path)) is None
    save(Scorer(SHAPE), tmp_path / PLACE)
    assert locate(str(tmp_path)) == tmp_path / PLACE
    with pytest.raises(ScorerError, match="does not exist"):
        locate(str(tmp_path), given)
    given.write_bytes((tmp_path / PLACE).read_bytes())
    assert locate(str(tmp_path), given) == given


def test_a_hub_name_means_the_local_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    repository = tmp_path / "models--someone--model"
    save(Scorer(SHAPE), repository / "snapshots" / commit / PLACE)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert locate("someone/model") == repository / "snapshots" / commit / PLACE
    assert locate("someone/other") is None
    assert locate("no/such/name") is None


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    assert str(PLACE) in (STTS.refusal(served(tmp_path)) or "")
    save(Scorer(SHAPE), tmp_path / PLACE)
    assert STTS.refusal(served(tmp_path)) is None
    for change in ({"hidden_size": 16}, {"spatial_merge_size": 3}, {"depth": 1}, {"depth": None}):
        assert "does not fit this model" in (STTS.refusal(served(tmp_path, **change)) or "")
    unknown = served(tmp_path)
    unknown.model_config.hf_config = SimpleNamespace()
    assert "does not say what its vision tower is like" in (STTS.refusal(unknown) or "")


def test_the_facts_name_the_file_and_no_configuration_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PRUNE_CONFIG", str(tmp_path / "only-on-the-first-node.yaml"))
    named = served(tmp_path)
    named.additional_config = {"vllm_prune": {"scorer": str(tmp_path / "named.safetensors")}}
    assert "named.safetensors, which does not exist" in (STTS.refusal(named) or "")
    save(Scorer(SHAPE), tmp_path / "named.safetensors")
    assert STTS.refusal(named) is None
    assert STTS.locate(named) == tmp_path / "named.safetensors"
