"""The training code's tower against transformers' own with hidden keys; losses against loops; where gradients go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_prune.grid import Grid
from vllm_prune.visual.scorers.stts.model import Scorer, Shape
from vllm_prune.visual.scorers.stts.training import RATES, PrunedTower, parameter_groups, temporal_loss

from ....engine.checkpoints import build, random_scorer
from ....engine.oracle import Item
from ....engine.scoring import SttsOracle

SIZES = ((1, 12, 10), (4, 8, 10), (2, 4, 6))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> SttsOracle:
    torch.set_num_threads(1)
    path: Path = build("qwen2_5_vl", tmp_path_factory.mktemp("training") / "model")
    return SttsOracle(path, random_scorer("qwen2_5_vl", 1))


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    thw = torch.tensor(SIZES)
    patches = torch.rand(int(thw.prod(-1).sum()), 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(3))
    return patches * 2 - 1, thw


@pytest.mark.parametrize(("after", "rescale"), [(0, "row"), (1, "video"), (2, "frame")])
def test_features_and_cells_are_those_of_the_masked_tower(oracle: SttsOracle, after: int, rescale: Any) -> None:
    scorer = random_scorer("qwen2_5_vl", after)
    scorer.shape = replace(scorer.shape, rescale=rescale)
    oracle.scorer = scorer
    patches, thw = inputs()
    counts = [13, 45, 3]
    found = PrunedTower(oracle.hf.model.visual, scorer)(patches, thw, counts)
    start, features, kept = 0, [], []
    for (t, h, w), count, own in zip(SIZES, counts, patches.split(thw.prod(-1).tolist()), strict=True):
        item = Item("video", Grid(t, h // 2, w // 2), 1.0, torch.empty(0), [], own)
        cells = oracle.choose(item, "stts", count, None, [])
        features.append(item.features[cells])
        kept.append(cells + start)
        start += item.grid.tokens
    assert torch.equal(found.kept, torch.cat(kept))
    assert (found.features - torch.cat(features)).abs().max() < 1e-4


def test_the_loss_reaches_the_scorer_through_the_bias_alone(oracle: SttsOracle) -> None:
    patches, thw = inputs()
    scorer = random_scorer("qwen2_5_vl", 1).requires_grad_(True)
    oracle.hf.requires_grad_(False)
    for detach in (False, True):
        scorer.zero_grad()
        found = PrunedTower(oracle.hf.model.visual, scorer, detach)(patches, thw, [13, 45, 3])
        assert found.features.requires_grad is not detach
        if not detach:
            found.features.square().mean().backward()
            assert scorer.mlp.w1.weight.grad is not None
            assert scorer.pooler.wq.weight.grad is not None
            assert scorer.mlp.w1.weight.grad.abs().max() > 0
    # Blocks in front of the scorer learn only when they are asked to.
    oracle.hf.requires_grad_(True)
    PrunedTower(oracle.hf.model.visual, scorer)(patches, thw, [13, 45, 3]).features.sum().backward()
    assert oracle.hf.model.visual.blocks[0].mlp.down_proj.weight.grad is None
    PrunedTower(oracle.hf.model.visual, scorer)(patches, thw, [13, 45, 3], frozen=False).features.sum().backward()
    assert oracle.hf.model.visual.blocks[0].mlp.down_proj.weight.grad is not None
    oracle.hf.zero_grad()


def test_temporal_loss() -> None:
    grids = [Grid(1, 2, 2), Grid(3, 1, 2)]
    cells, scores = torch.randn(10, 4, 5), torch.rand(10, requires_grad=True)
    expected = []
    for t in (1, 2):
        for place in (0, 1):
            now = 4 + 2 * t + place
            one, other = cells[now - 2].double().flatten(), cells[now].double().flatten()
            target = 1 - (one @ other) / (one.norm() * other.norm())
            expected.append((scores[now].double() - target) ** 2)
    found = temporal_loss(scores, cells, grids)
    assert abs(found.item() - sum(expected).item() / 4) < 1e-6  # type: ignore[union-attr]
    found.backward()
    assert scores.grad is not None
    assert scores.grad[:6].abs().max() == 0
    assert scores.grad[6:].abs().min() > 0
    still = temporal_loss(torch.rand(4, requires_grad=True), torch.randn(4, 4, 5), [Grid(1, 2, 2)])
    assert still.item() == 0
    still.backward()


def test_groups_have_the_papers_ratios_and_share_nothing(oracle: SttsOracle) -> None:
    scorer = Scorer(Shape(128, 4, 8, 2, 1))
    groups = parameter_groups(oracle.hf, scorer, "joint", scale=2)
    assert {group["name"]: group["lr"] for group in groups} == {name: 2 * rate for name, rate in RATES.items()}
    everything = [id(p) for group in groups for p in group["params"]]
    assert len(everything) == len(set(everything)) == len([*oracle.hf.parameters(), *scorer.parameters()])
    [alone] = parameter_groups(oracle.hf, scorer, "scorer")
    assert alone["name"] == "scorer"
    assert not any(p.requires_grad for p in oracle.hf.parameters())
