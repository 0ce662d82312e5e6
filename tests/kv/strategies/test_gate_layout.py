"""DyVTE's gates on disk: the authors' names and shapes; a 400 and no start where they do not fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.gate_weights import gate_weights
from vllm_prune.visual.scorers.base import ScorerError
from vllm_prune.visual.scorers.trained import load_network, network_of, networks_of, refusal
from vllm_prune.visual.strategies._trained import LanguageShape

LAYERS, WIDTH = 4, 32
LANGUAGE = LanguageShape(WIDTH, 4, 2, layers=LAYERS)


def served(path: Path | None, **text: int) -> Any:
    """A model and the file that its operator has named."""
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 4, "num_hidden_layers": LAYERS, **text}
    model = SimpleNamespace(hf_config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(**sizes)))
    weights = {} if path is None else {"dyvte": str(path)}
    return SimpleNamespace(model_config=model, additional_config={"vllm_prune": {"weights": weights}})


def test_gates_alone_or_inside_a_checkpoint(tmp_path: Path) -> None:
    """With the authors' inner width; nothing is read of the gate behind the last layer."""
    tensors = gate_weights(LAYERS, WIDTH)
    save_file(tensors, tmp_path / "alone.safetensors")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for i in range(2):
        half = {f"model.{name}": tensor.half() for name, tensor in list(tensors.items())[i::2]}
        save_file({**half, f"model.layers.{i}.mlp.weight": torch.zeros(2, 2)}, folder / f"model-{i}.safetensors")
    alone = load_network("dyvte", tmp_path / "alone.safetensors", LANGUAGE).tensors
    inside = load_network("dyvte", folder, LANGUAGE).tensors
    names = {f"visual_gates_router.{gate}.w{number}.weight" for gate in range(LAYERS - 1) for number in (1, 2)}
    assert set(alone) == set(inside) == names
    for name, tensor in alone.items():
        assert tensor.shape == ((2048, 2 * WIDTH) if "w1" in name else (2, 2048))
        assert torch.equal(tensor, tensors[name])
        assert torch.equal(inside[name], tensor.half())


def test_the_model_starts_with_gates_that_fit(tmp_path: Path) -> None:
    file = tmp_path / "gates.safetensors"
    save_file(gate_weights(LAYERS, WIDTH, 16), file)
    assert refusal("dyvte", served(file)) is None
    network = network_of("dyvte", served(file))
    assert network is not None
    assert network.language.layers == LAYERS
    # They are no layers of a visual strategy, which model adapters would load.
    assert networks_of(served(file)) == {}
    assert network_of("dyvte", served(None)) is None
    assert "(weights: {dyvte: PATH})" in (refusal("dyvte", served(None)) or "")
    without_last = {name: one for name, one in gate_weights(LAYERS, WIDTH, 16).items() if f".{LAYERS - 1}." not in name}
    save_file(without_last, file)
    assert refusal("dyvte", served(file)) is None


def test_of_a_missing_file(tmp_path: Path) -> None:
    missing = served(tmp_path / "absent")
    assert "does not exist; correct the path or remove it" in (refusal("dyvte", missing) or "")
    with pytest.raises(ScorerError, match=r"weights\.dyvte: weights\.dyvte names .*absent, which does not exist"):
        network_of("dyvte", missing)


NAME = "visual_gates_router.1.w{}.weight"


@pytest.mark.parametrize(
    ("change", "text", "words"),
    [
        ({NAME.format(1): None}, {}, f"{NAME.format(1)} is missing"),
        ({NAME.format(2): None}, {}, f"{NAME.format(2)} is missing"),
        ({NAME.format(1): (16, WIDTH)}, {}, f"{NAME.format(1)} has the shape [16, {WIDTH}]"),
        ({NAME.format(2): (3, 16)}, {}, f"{NAME.format(2)} has the shape [3, 16]"),
        ({NAME.format(2): (2, 17)}, {}, "needs [2, 16]"),
        ({"visual_gates_router.0.w1.weight": ()}, {}, "visual_gates_router.0.w1.weight has the shape []"),
        ({"visual_gates_router.0.w1.weight": None}, {}, "has no visual_gates_router.0.w1.weight"),
        # Of another model.
        ({}, {"hidden_size": 64}, "a language model of width 64"),
        ({}, {"num_hidden_layers": 6}, "visual_gates_router.4.w1.weight is missing"),
        ({}, {"num_hidden_layers": 3}, "it has a gate behind layer 3, and this model's last layer is 2"),
        ({}, {"num_hidden_layers": 1}, "gates stand between layers, of which this model's configuration names 1"),
        ({}, {"num_hidden_layers": 0}, "gates stand between layers, of which this model's configuration names 0"),
    ],
)
def test_gates_that_do_not_fit(
    change: dict[str, tuple[int, ...] | None], text: dict[str, int], words: str, tmp_path: Path
) -> None:
    tensors: dict[str, Tensor] = gate_weights(LAYERS, WIDTH, 16)
    for name, shape in change.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = torch.zeros(shape)
    file = tmp_path / "gates.safetensors"
    save_file(tensors, file)
    assert words in (refusal("dyvte", served(file, **text)) or "")
    with pytest.raises(ScorerError, match=r"^weights\.dyvte: ") as error:
        network_of("dyvte", served(file, **text))
    assert words in str(error.value)
