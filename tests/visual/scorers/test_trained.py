"""Trained layers on disk: found by their anchor, read in one's own dtype, refused or no start where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.visual.strategies.trained import LANGUAGE, weights
from vllm_prune.catalogue import VISUAL
from vllm_prune.visual.scorers.base import ScorerError
from vllm_prune.visual.scorers.trained import find, language_shape, load_network, networks_of, refusal
from vllm_prune.visual.strategies._trained import LanguageShape


def text_config(width: int = 32, heads: int = 4) -> Any:
    return SimpleNamespace(
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=2,
        rope_parameters={"rope_theta": 1000.0},
        rms_norm_eps=1e-5,
    )


def served(width: int = 32, heads: int = 4, **layers: str) -> Any:
    vision = SimpleNamespace(image_size=99, patch_size=14)
    config = SimpleNamespace(get_text_config=lambda: text_config(width, heads), vision_config=vision)
    model = SimpleNamespace(hf_config=config)
    return SimpleNamespace(model_config=model, additional_config={"vllm_prune": {"weights": layers}})


def test_sizes_of_the_language_model() -> None:
    vision = SimpleNamespace(image_size=99, patch_size=14)
    assert language_shape(SimpleNamespace(get_text_config=text_config, vision_config=vision)) == LANGUAGE
    # Towers that take any size, and sizes of both sides, say nothing of all frames.
    for other in (None, SimpleNamespace(patch_size=14), SimpleNamespace(image_size=[99, 99], patch_size=14)):
        shape = language_shape(SimpleNamespace(get_text_config=text_config, vision_config=other))
        assert shape == replace(LANGUAGE, frame_patches=0)
    plain = SimpleNamespace(hidden_size=8, num_attention_heads=2, rope_theta=5.0)
    assert language_shape(SimpleNamespace(get_text_config=lambda: plain)) == LanguageShape(8, 2, 2, 5.0, 1e-6)
    assert language_shape(SimpleNamespace(get_text_config=lambda: SimpleNamespace())) is None
    assert language_shape(SimpleNamespace()) is None


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("qtsplus", "model.qts_plus.selector."),
        ("cacovid", "compression_policy."),
        ("vqtoken", "model.cross_attention."),
    ],
)
def test_layers_alone_or_inside_a_checkpoint(name: str, prefix: str, tmp_path: Path) -> None:
    tensors = weights(name)
    save_file(tensors, tmp_path / "alone.safetensors")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
    others = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}
    for i, half in enumerate(halves):
        inside = {prefix + key: tensor.bfloat16() for key, tensor in half.items()}
        save_file({**inside, **(others if i == 0 else {})}, folder / f"model-{i}.safetensors")
    alone = load_network(name, tmp_path / "alone.safetensors", LANGUAGE)
    inside = load_network(name, folder, LANGUAGE)
    assert set(alone.tensors) == set(inside.tensors)
    for key, tensor in alone.tensors.items():
        assert torch.equal(tensor, tensors[key])
        assert inside.tensors[key].dtype == torch.bfloat16
        assert torch.equal(inside.tensors[key], tensor.bfloat16())


def test_a_file_that_holds_none_or_several(tmp_path: Path) -> None:
    cls: Any = VISUAL.strategy_class("qtsplus")
    save_file(weights("cacovid"), tmp_path / "other.safetensors")
    with pytest.raises(ScorerError, match="no scoring_layers"):
        find(cls, tmp_path / "other.safetensors")
    twice = {f"{place}.{key}": tensor for place in "ab" for key, tensor in weights("qtsplus").items()}
    save_file(twice, tmp_path / "twice.safetensors")
    with pytest.raises(ScorerError, match="several tensors"):
        find(cls, tmp_path / "twice.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ScorerError, match="cannot be read"):
        find(cls, tmp_path / "text.safetensors")


@pytest.mark.parametrize("name", ["qtsplus", "cacovid", "vqtoken"])
def test_refusals_and_no_start(name: str, tmp_path: Path) -> None:
    file = tmp_path / "layers.safetensors"
    save_file(weights(name), file)
    assert f"weights: {{{name}: PATH}}" in (refusal(name, served()) or "")
    assert refusal(name, served(**{name: str(file)})) is None
    assert set(networks_of(served(**{name: str(file)}))) == {name}
    assert networks_of(served()) == {}
    wrong_heads = [] if name == "vqtoken" else [(served(32, 8, **{name: str(file)}), "8 heads")]
    for config, words in (
        *wrong_heads,
        (served(64, 4, **{name: str(file)}), "width 64"),
        (served(**{name: f"{tmp_path}/none"}), "does not exist"),
        (SimpleNamespace(**{**vars(served(**{name: str(file)})), "model_config": SimpleNamespace(hf_config=None)}),
         "does not say"),
    ):  # fmt: skip
        assert words in (refusal(name, config) or "")
        with pytest.raises(ScorerError, match=f"weights.{name}: .*{words}"):
            networks_of(config)
    # A file that is replaced is read again.
    save_file({key: one for key, one in weights(name).items() if not key.endswith("q_proj.bias")}, file)
    assert any(key.endswith("q_proj.bias") for key in weights(name))
    assert "missing" in (refusal(name, served(**{name: str(file)})) or "no finding")
