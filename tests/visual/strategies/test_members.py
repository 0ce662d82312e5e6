"""Which cells a merged token stands for: those that weigh most in the merge, as the merge itself says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.shares import even_shares
from vllm_prune.visual.strategies._merging import MergingStrategy
from vllm_prune.visual.strategies.base import Context
from vllm_prune.visual.strategies.maths import heaviest, heaviest_columns

from .test_catalogue import CASES, ROWS, Row, items

MERGING = [row for row in ROWS if issubclass(VISUAL.strategy_class(row.name), MergingStrategy)]
# Weights are compared in steps of 2^-20.
STEP = 2e-6


def test_all_that_merge_take_positions_and_no_others_do() -> None:
    taking = {name for name in VISUAL.names() if "positions" in VISUAL.strategy_class(name).Options.model_fields}
    assert taking == {row.name for row in MERGING}
    assert len(taking) == 7


@pytest.mark.parametrize("name", sorted({row.name for row in MERGING}))
@pytest.mark.parametrize("positions", [0, 17, -1, 1.5, True, "8", None])
def test_bad_counts_are_refused(name: str, positions: Any) -> None:
    with pytest.raises(ValidationError):
        VISUAL.create(name, {"positions": positions})


@pytest.mark.slow
@pytest.mark.parametrize("row", MERGING, ids=str)
@CASES
@given(data=st.data())
def test_members_weigh_most(row: Row, data: st.DataObject) -> None:
    item = data.draw(items(row))
    count = data.draw(st.integers(1, item.grid.tokens))
    parts = data.draw(st.integers(1, 9))
    per_frame = even_shares(count, item.grid.frames, item.grid.per_frame) if data.draw(st.booleans()) else None
    strategy = VISUAL.create(row.name, row.options)
    reduction = strategy.reduce(item.tokens, item.grid, count, item.context, per_frame)
    members = reduction.members_of(parts)
    assert members.dtype == torch.int64
    assert members.shape == (count, parts)
    assert torch.equal(members, reduction.members_of(parts))
    # Merging is linear: the weights of all cells are what becomes of unit rows.
    weights = reduction.rows(torch.eye(item.grid.tokens))
    for of_cell, weight in zip(members.tolist(), weights, strict=True):
        most, some = weight.sort(descending=True).values, len(set(of_cell))
        assert of_cell == [of_cell[i % some] for i in range(parts)]
        torch.testing.assert_close(weight[of_cell[:some]], most[:some], rtol=0, atol=STEP)
        assert some == parts or (most[some:] <= STEP).all()
    if per_frame is not None:
        frame = reduction.kept // item.grid.per_frame
        assert torch.equal(members // item.grid.per_frame, frame[:, None].expand(-1, parts))


@pytest.mark.parametrize("row", MERGING, ids=str)
def test_more_positions_begin_with_the_same(row: Row) -> None:
    grid, generator = Grid(4, 5, 6), torch.Generator().manual_seed(3)
    tokens = torch.randn(grid.per_frame, 24, generator=generator).repeat(grid.frames, 1)
    tokens += 0.1 * torch.randn(grid.tokens, 24, generator=generator)
    attention = torch.rand(grid.tokens, generator=generator)
    reduction = VISUAL.create(row.name, row.options).reduce(tokens, grid, 20, Context(7, attention))
    few, many = reduction.members_of(2), reduction.members_of(8)
    assert torch.equal(few, many[:, :2])
    # Something is merged, or the above says nothing.
    assert (many != many[:, :1]).any()


def test_the_cells_most_like_the_mean_come_first() -> None:
    tokens = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [1.0, 0.2], [0.1, 1.0]])
    reduction = VISUAL.create("vqtoken_kmeans").reduce(tokens, Grid(1, 1, 5), 2, Context())
    found = {tuple(sorted(set(of_cell))): of_cell[0] for of_cell in reduction.members_of(3).tolist()}
    # The mean of the first group points to 0.1 of the second axis; the other group has two, equally near.
    assert found == {(0, 2, 3): 2, (1, 4): 1}
    for of_cell in reduction.members_of(5).tolist():
        size = len(set(of_cell))
        assert of_cell == [of_cell[i % size] for i in range(5)]


@given(data=st.data(), count=st.integers(1, 6), parts=st.integers(1, 9))
def test_heaviest_against_sorting_by_hand(data: st.DataObject, count: int, parts: int) -> None:
    rows = data.draw(st.lists(st.tuples(st.integers(0, count), st.integers(0, 3), st.integers(0, 3)), max_size=30))
    # Nobody is without a row.
    rows += [(owner, 1, 1) for owner in range(count)]
    owner, first, second = torch.tensor(rows).unbind(1)
    found = heaviest(owner, count, parts, first.float(), second.float())
    for number in range(count):
        mine = [i for i, row in enumerate(rows) if row[0] == number]
        mine = sorted(mine, key=lambda i: (-rows[i][1], -rows[i][2], i))[:parts]
        assert found[number].tolist() == [mine[i % len(mine)] for i in range(parts)]


def test_heaviest_columns() -> None:
    plan = torch.tensor([[0.1, 0.0, 0.6, 0.3], [0.0, 1.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    assert heaviest_columns(plan, 2).tolist() == [[2, 3], [1, 1], [0, 1]]
    assert heaviest_columns(plan, 6).tolist() == [[2, 3, 0, 2, 3, 0], [1] * 6, [0, 1, 2, 3, 0, 1]]
