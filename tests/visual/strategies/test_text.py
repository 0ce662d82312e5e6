"""Strategies that read the question, against their formulas in float64 and examples worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies.base import Context
from vllm_prune.visual.strategies.flashvlm import relevance, unlike
from vllm_prune.visual.strategies.maths import banded, unit_rows, volume_gains
from vllm_prune.visual.strategies.maths.determinantal import RIDGE


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def greedy_volume(rows: Tensor, weights: Tensor, count: int) -> list[int]:
    """Picks by determinants themselves, in float64."""
    units = torch.nn.functional.normalize(rows.double(), dim=1)
    kernel = weights.double().diag() @ (units @ units.T + RIDGE * torch.eye(len(rows))) @ weights.double().diag()
    picks: list[int] = []
    for _ in range(count):
        volumes = [
            -1.0 if i in picks else float(torch.linalg.det(kernel[[*picks, i]][:, [*picks, i]]))
            for i in range(len(rows))
        ]
        picks.append(max(range(len(rows)), key=volumes.__getitem__))
    return picks


def in_order(gains: Tensor) -> list[int]:
    return [i for i in gains.argsort(descending=True, stable=True).tolist() if gains[i] > -math.inf]


@pytest.mark.parametrize("seed", range(6))
def test_picks_are_those_of_the_determinant(seed: int) -> None:
    rows, weights = random(14, 20, seed=seed), random(14, seed=seed + 100).sigmoid()
    gains = volume_gains(unit_rows(rows)[None], weights[None], 9)[0]
    assert in_order(gains) == greedy_volume(rows, weights, 9)


def test_long_segments_are_compared_pick_by_pick() -> None:
    rows, weights = random(600, 20, seed=12), random(600, seed=13).sigmoid()
    gains = volume_gains(unit_rows(rows)[None], weights[None], 8)[0]
    assert in_order(gains) == greedy_volume(rows, weights, 8)
    halves = volume_gains(unit_rows(rows).view(2, 300, 20), weights.view(2, 300), 8)
    assert in_order(halves[0]) == greedy_volume(rows[:300], weights[:300], 8)


def test_segments_do_not_notice_each_other() -> None:
    rows, weights = random(3, 10, 16, seed=1), random(3, 10, seed=2).sigmoid()
    valid = torch.ones(3, 10, dtype=torch.bool)
    valid[2, 7:] = False
    together = volume_gains(unit_rows(rows), weights, 8, valid)
    for part in range(2):
        assert torch.allclose(volume_gains(unit_rows(rows[part])[None], weights[part][None], 8)[0], together[part])
    alone = volume_gains(unit_rows(rows[2, :7])[None], weights[2, :7][None], 7)[0]
    assert torch.allclose(alone, together[2, :7])
    assert together[2, 7:].isneginf().all()
    # What a pick gains never grows.
    for part in together:
        gained = part[part > -math.inf]
        assert (gained.sort(descending=True).values.diff() <= 0).all()


def test_more_picks_than_dimensions_go_by_weight() -> None:
    """Rows that span one dimension: the first pick takes it, and the others are picked by what the ridge leaves."""
    weights = torch.tensor([0.2, 0.9, 0.5, 0.7])
    gains = volume_gains(torch.ones(1, 4, 1), weights[None], 4)[0]
    assert in_order(gains) == [1, 3, 2, 0]


@pytest.mark.parametrize("frames", [1, 3])
def test_cdpruner_is_its_formula(frames: int) -> None:
    grid = Grid(frames, 3, 5)
    tokens, text = random(grid.tokens, 24, seed=3), random(4, 24, seed=4)
    similar = (
        torch.nn.functional.normalize(tokens.double(), dim=1) @ torch.nn.functional.normalize(text.double(), dim=1).T
    )
    relevant = similar.mean(1)
    weights = (relevant - relevant.min()) / (relevant.max() - relevant.min())
    expected = greedy_volume(tokens, weights, 6)
    kept = VISUAL.create("cdpruner").select(tokens, grid, 6, Context(text=text))
    if frames == 1:
        assert kept.tolist() == sorted(expected)
    else:
        # The floor may replace the last picks by the best of frames that have none.
        assert len(set(kept.tolist()) & set(expected)) >= 4


def test_cdpruner_in_segments_keeps_the_largest_gains_of_all() -> None:
    grid = Grid(1, 20, 30)
    tokens, text = random(600, 80, seed=5), random(4, 80, seed=6)
    kept = VISUAL.create("cdpruner").select(tokens, grid, 150, Context(text=text))
    similar = unit_rows(tokens) @ unit_rows(text).T
    relevant = similar.mean(1)
    weights = (relevant - relevant.min()) / (relevant.max() - relevant.min())
    gains = torch.cat(
        [
            volume_gains(unit_rows(tokens[a : a + 200])[None], weights[a : a + 200][None], 100)[0]
            for a in range(0, 600, 200)
        ]
    )
    assert set(kept.tolist()) == set(gains.argsort(descending=True, stable=True)[:150].tolist())


@pytest.mark.parametrize("name", ["cdpruner", "flashvlm"])
def test_the_question_decides(name: str) -> None:
    """Sixteen orthogonal cells: those that the text names are kept, and another text keeps others."""
    tokens, grid, flat = torch.eye(16), Grid(1, 4, 4), torch.ones(16)
    for named in (3, 12):
        kept = VISUAL.create(name).select(tokens, grid, 2, Context(tower_attention=flat, text=tokens[named][None]))
        assert named in kept.tolist()
    with pytest.raises(ValueError, match="'text'"):
        VISUAL.create(name).select(tokens, grid, 2, Context(tower_attention=flat))


def test_relevance_in_float64() -> None:
    similar, lengths = random(40, 5, seed=7).tanh() / 2, random(5, seed=8).abs() + 0.5
    found = relevance(similar, lengths)
    weighted = [[float(c) * float(n / lengths.max()) for c, n in zip(row, lengths, strict=True)] for row in similar]
    each = []
    for row in weighted:
        powers = [math.exp(value / 0.05) for value in row]
        each.append(sum(p * value for p, value in zip(powers, row, strict=True)) / sum(powers))
    sharp = [math.exp((value - max(each)) / 0.01 * 2.5) for value in each]
    scaled = [(value - min(sharp)) / (max(sharp) - min(sharp)) for value in sharp]
    # Of forty, one is the top half percent; it has a value of one.
    tenth = [value if value == 1 else value / 10 for value in scaled]
    assert found.tolist() == pytest.approx([value - min(tenth) for value in tenth], abs=1e-6)


def test_duplicates_in_even_places_are_dropped() -> None:
    """Rows 0 to 3 are pairs of alike ones; of rows 4 and 5 neither is like another."""
    e = torch.eye(6)
    rows = unit_rows(torch.stack([e[0], e[0] + 0.1 * e[5], e[1], e[1], e[2], e[3]]))
    assert unlike(rows, 6).tolist() == [0, 1, 2, 3, 4, 5]
    # Most alike is row 2 with row 3, then row 0 with row 1.
    assert unlike(rows, 5).tolist() == [0, 4, 1, 3, 5]
    assert unlike(rows, 4).tolist() == [4, 1, 3, 5]
    assert unlike(rows, 0).tolist() == []


def test_flashvlm_is_a_half_and_a_half() -> None:
    grid = Grid(1, 6, 8)
    tokens, text, attention = random(48, 32, seed=9), random(3, 32, seed=10), random(48, seed=11).sigmoid()
    kept = set(
        VISUAL.create("flashvlm").select(tokens, grid, 11, Context(tower_attention=attention, text=text)).tolist()
    )
    asked = relevance(unit_rows(tokens) @ unit_rows(text).T, text.norm(dim=1)).double()
    saliency = attention.double()
    saliency = (saliency - saliency.min()) / (saliency.max() - saliency.min())
    order = (saliency.clamp_min(1e-6) * asked.clamp_min(1e-6)).sqrt().argsort(descending=True, stable=True)
    rest = order[5:]
    assert kept == set(order[:5].tolist()) | set(rest[unlike(unit_rows(tokens[rest]), 6)].tolist())


def test_bands_hold_every_cell_once() -> None:
    grid = Grid(2, 5, 7)
    rows = torch.arange(70.0)[:, None] + 1
    segments, valid = banded(rows, grid, 3)
    assert segments.shape == (6, 12, 1)
    assert valid is not None
    assert segments[valid].flatten().tolist() == rows.flatten().tolist()
    assert (segments[~valid] == 0).all()
    whole, everywhere = banded(rows, grid, 5)
    assert everywhere is None
    assert whole.shape == (10, 7, 1)
