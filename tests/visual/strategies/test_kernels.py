"""The kernel of greedy choices equals its torch form, run by Triton's interpreter and on a GPU, in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.triton_child import output_of
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies.base import Context
from vllm_prune.visual.strategies.divprune import DivPrune
from vllm_prune.visual.strategies.maths import diversity, sketch

CHILD = Path(__file__).parent / "kernels_child.py"


@pytest.mark.slow
@pytest.mark.parametrize("interpreted", ["1", pytest.param("0", marks=pytest.mark.gpu)])
def test_the_kernel_equals_its_torch_form(interpreted: str) -> None:
    assert "8 checked" in output_of(CHILD, TRITON_INTERPRET=interpreted)


def _greedy(units: torch.Tensor, count: int) -> list[int]:
    """The paper's choice, from the cell farthest from the mean, by whole steps of 2^-20."""
    distance = ((1 - units @ units.T) * 2**20).round()
    picks = [int((-(units @ units.mean(0)) * 2**20).round().argmax())]
    while len(picks) < count:
        reach = distance[picks].amin(0)
        reach[picks] = -1
        picks.append(int(reach.argmax()))
    return sorted(picks)


def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Take the way of a GPU, with the torch form in the kernel's place; the steps of each launch, as they come."""
    launches: list[int] = []

    def one_launch(table: torch.Tensor, lonely: torch.Tensor, first: torch.Tensor, steps: int, top: float) -> Any:
        launches.append(steps)
        return diversity.gains_by_steps(table, lonely, first, steps, top)

    monkeypatch.setattr(diversity, "launches_once", lambda units, n: True)
    monkeypatch.setattr(diversity, "gains_in_one_launch", one_launch)
    return launches


def test_a_gpu_picks_over_the_whole_item_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one launch; here by the torch form, as the kernel equals it."""
    grid, count = Grid(1, 16, 40), 96
    tokens = torch.randn(grid.tokens, 64, generator=torch.Generator().manual_seed(3))
    steps = _as_on_a_gpu(monkeypatch)
    assert DivPrune().select(tokens, grid, count, Context()).tolist() == _greedy(sketch(tokens), count)
    assert steps == [count]


def test_every_frame_keeps_one_where_a_gpu_picks_over_a_video(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, count = Grid(8, 8, 16), 60
    tokens = torch.randn(grid.tokens, 64, generator=torch.Generator().manual_seed(4))
    tokens[: grid.per_frame] = tokens[0]
    assert count * 5 <= grid.tokens
    steps = _as_on_a_gpu(monkeypatch)
    kept = DivPrune().select(tokens, grid, count, Context())
    assert steps == [count]
    assert len(kept.unique()) == count
    assert len((kept // grid.per_frame).unique()) == grid.frames
