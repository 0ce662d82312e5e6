"""Sensitivity of a projector, against derivatives that are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies.base import Context
from vllm_prune.visual.strategies.maths import spread_to_one, unit_rows
from vllm_prune.visual.tower.projector import DIRECTIONS, ProjectorSensitivity, _directions, sensitivity


def patches(cells: int, seed: int = 0) -> Tensor:
    return torch.randn(cells * 4, 1, 6, generator=torch.Generator().manual_seed(seed))


def test_of_a_linear_projector_it_is_the_length_of_its_derivative() -> None:
    """Of a matrix A, the mean of |A u| over the directions, whatever the cell."""
    matrix = torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
    found = sensitivity(lambda x: x.reshape(-1, 24) @ matrix, patches(7), 4)
    expected = (_directions(24, torch.device("cpu")).double() @ matrix.double()).norm(dim=1).mean()
    assert found.shape == (7,)
    assert found.tolist() == pytest.approx([float(expected)] * 7, rel=1e-3)


def test_of_a_curved_one_it_is_close_to_the_derivative() -> None:
    def project(x: Tensor) -> Tensor:
        return torch.tanh(x.reshape(-1, 24)).square()

    cells = patches(9, seed=2)
    rows = cells.reshape(9, 24).double()
    slope = 2 * rows.tanh() * (1 - rows.tanh().square())
    directions = _directions(24, torch.device("cpu")).double()
    expected = (slope[:, None] * directions[None]).norm(dim=2).mean(1)
    found = sensitivity(project, cells, 4).double()
    assert (found - expected).abs().max() < 0.05 * expected.max()
    assert found.argsort().tolist()[-2:] == expected.argsort().tolist()[-2:]


def test_no_cell_depends_on_its_batch() -> None:
    torch.manual_seed(0)
    projector = nn.Sequential(nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 8))

    @torch.no_grad()
    def project(x: Tensor) -> Tensor:
        return projector(x.reshape(-1, 24))

    one, other = patches(5, seed=3), 100 * patches(3, seed=4)
    together = sensitivity(project, torch.cat([one, other]), 4)
    assert torch.allclose(together[:5], sensitivity(project, one, 4), rtol=1e-4)
    assert torch.allclose(together[5:], sensitivity(project, other, 4), rtol=1e-4)
    assert sensitivity(project, torch.zeros(4, 1, 6), 4).isfinite().all()


def test_a_listener_leaves_the_projector_as_it_was() -> None:
    class Merger(nn.Module):
        """Called as vLLM's are, which go past hooks."""

        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(-1, 24)[:, :5] * 2

        def __call__(self, x: Tensor) -> Tensor:
            return self.forward(x)

    merger = Merger()
    model = SimpleNamespace(visual=SimpleNamespace(merger=merger), _merge=2)
    first, second = patches(6, seed=6), patches(2, seed=7)
    grids = torch.tensor([[1, 4, 2], [1, 4, 6]])
    with ProjectorSensitivity(model, enabled=True) as listener:
        assert torch.equal(merger(torch.cat([second, first])), merger.forward(torch.cat([second, first])))
        del listener._received[merger][1:]
        found = listener.per_item(grids)
    assert "forward" not in vars(merger)
    for got, cells in zip(found, (second, first), strict=True):
        assert got is not None
        assert torch.allclose(got, sensitivity(merger.forward, cells, 4), rtol=1e-4)
    with ProjectorSensitivity(model, enabled=False) as idle:
        merger(first)
        assert idle.per_item(grids) == [None, None]


def test_directions_are_unit_and_always_the_same() -> None:
    found = _directions(24, torch.device("cpu"))
    assert found.shape == (DIRECTIONS, 24)
    assert torch.allclose(found.norm(dim=1), torch.ones(DIRECTIONS))
    _directions.cache_clear()
    assert torch.equal(found, _directions(24, torch.device("cpu")))


def test_zoo_in_float64() -> None:
    generator = torch.Generator().manual_seed(5)
    tokens, importance = torch.randn(40, 16, generator=generator), torch.rand(40, generator=generator)
    units, weights = unit_rows(tokens).double(), spread_to_one(importance).double()
    picks = [int(weights.argmax())]
    for _ in range(11):
        near = (units @ units[picks].T).amax(1)
        gains = weights * (1 - near)
        gains[picks] = -1
        picks.append(int(gains.argmax()))
    kept = VISUAL.create("zoo").select(tokens, Grid(1, 5, 8), 12, Context(sensitivity=importance))
    assert kept.tolist() == sorted(picks)
    with pytest.raises(ValueError, match="'projector'"):
        VISUAL.create("zoo").select(tokens, Grid(1, 5, 8), 12, Context())
