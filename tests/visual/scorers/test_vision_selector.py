"""VisionSelector's score against the mean over the whole matrix of logits, and its weights on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.scorers.base import ScorerError
from vllm_prune.visual.scorers.vision_selector import PREFIX, SELECTOR, WEIGHTS, Selector, load_selector
from vllm_prune.visual.strategies.base import Context


def weights(width: int, hidden: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*((hidden, width) if "weight" in name else (hidden,)), generator=generator)
            for name in WEIGHTS}  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 9))
def test_scores_are_the_mean_logits(cells: int, width: int, hidden: int) -> None:
    own, tokens = weights(width, hidden), torch.randn(cells, width)
    wide = {name: weight.double() for name, weight in own.items()}
    q = tokens.double() @ wide["q_proj.weight"].T + wide["q_proj.bias"]
    k = tokens.double() @ wide["k_proj.weight"].T + wide["k_proj.bias"]
    expected = (q @ k.T / hidden**0.5).mean(1)
    assert torch.allclose(Selector(own).score(tokens, [Grid(1, 1, cells)]).double(), expected, atol=1e-4, rtol=1e-4)


def test_items_are_scored_apart() -> None:
    selector, tokens = Selector(weights(8, 4)), torch.randn(9, 8)
    grids = [Grid(1, 2, 2), Grid(1, 1, 5)]
    apart = [selector.score(part, [grid]) for part, grid in zip(tokens.split([4, 5]), grids, strict=True)]
    assert torch.equal(selector.score(tokens, grids), torch.cat(apart))
    assert not torch.allclose(selector.score(tokens, [Grid(1, 1, 9)]), torch.cat(apart))


def test_weights_alone_or_inside_a_checkpoint(tmp_path: Path) -> None:
    own, tokens = weights(8, 4), torch.randn(5, 8)
    save_file(own, tmp_path / "alone.safetensors")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    half = [{PREFIX + name: own[name].bfloat16() for name in WEIGHTS if name.startswith(letter)} for letter in "qk"]
    save_file({**half[0], "other": torch.zeros(1)}, folder / "model-1.safetensors")
    save_file(half[1], folder / "model-2.safetensors")
    alone, inside = load_selector(tmp_path / "alone.safetensors"), load_selector(folder)
    grids = [Grid(1, 1, 5)]
    assert torch.equal(alone.score(tokens, grids), Selector(own).score(tokens, grids))
    rounded = Selector({name: weight.bfloat16().float() for name, weight in own.items()})
    assert torch.equal(inside.score(tokens, grids), rounded.score(tokens, grids))
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ScorerError, match=r"no k_proj\.bias, k_proj\.weight"):
        load_selector(folder)
    with pytest.raises(ScorerError, match="does not exist"):
        load_selector(tmp_path / "none")


def test_refusals(tmp_path: Path) -> None:
    def refusal(width: int = 8, **facts: str) -> str | None:
        tower = SimpleNamespace(hidden_size=8, spatial_merge_size=2, out_hidden_size=width)
        model = SimpleNamespace(hf_config=SimpleNamespace(vision_config=tower))
        return SELECTOR.refusal(SimpleNamespace(model_config=model, additional_config={"vllm_prune": facts}))

    file = tmp_path / "own.safetensors"
    save_file(weights(8, 4), file)
    (tmp_path / "text.safetensors").write_text("no tensors")
    assert "vision_selector: {weights: PATH}" in (refusal() or "")
    assert "does not exist" in (refusal(selector=f"{tmp_path}/none") or "")
    assert "cannot be read" in (refusal(selector=f"{tmp_path}/text.safetensors") or "")
    assert refusal(selector=str(file)) is None
    assert "hidden size 8" in (refusal(16, selector=str(file)) or "")


def test_the_highest_scores_are_kept() -> None:
    scores = torch.tensor([0.1, 0.9, 0.5, 0.9, 0.2, 0.5])
    kept = VISUAL.create("vision_selector").select(torch.zeros(6, 2), Grid(2, 1, 3), 3, Context(scores=scores))
    assert kept.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="selector"):
        VISUAL.create("vision_selector").select(torch.zeros(6, 2), Grid(2, 1, 3), 3, Context())
