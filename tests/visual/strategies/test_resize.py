"""Grids that pictures are drawn smaller to: at most K, of the item's shape, and none larger of that kind."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies.base import Context, Strategy

RESIZE = VISUAL.create("resize")
SIDES = st.integers(1, 60)


def smaller(grid: Grid, count: int) -> Grid:
    found = RESIZE.resized(grid, count)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("rows", "cols", "count", "result"),
    [
        # Of 4 x 6 at scale s, round(4 s) and round(6 s): 2 x 2 from s = 3/8 on, 2 x 3 from 5/12, 2 x 4 from 7/12, 3 x 4
        # from 5/8, 3 x 5 from 3/4, 4 x 5 from 7/8.
        (4, 6, 3, (1, 2)),
        (4, 6, 5, (2, 2)),
        (4, 6, 6, (2, 3)),
        (4, 6, 8, (2, 4)),
        (4, 6, 11, (2, 4)),
        (4, 6, 12, (3, 4)),
        (4, 6, 15, (3, 5)),
        (4, 6, 20, (4, 5)),
        (4, 6, 23, (4, 5)),
        # Both sides of a square are due at once; one of them goes first.
        (9, 9, 9, (3, 3)),
        (9, 9, 12, (4, 3)),
        (1, 40, 7, (1, 7)),
        (40, 1, 7, (7, 1)),
        (7, 5, 1, (1, 1)),
    ],
)
def test_worked_by_hand(rows: int, cols: int, count: int, result: tuple[int, int]) -> None:
    assert smaller(Grid(1, rows, cols), count) == Grid(1, *result)


@given(SIDES, SIDES, st.integers(1, 8), st.data())
def test_the_largest_grid_of_the_shape_with_at_most_so_many(rows: int, cols: int, frames: int, data: st.DataObject):
    grid = Grid(frames, rows, cols)
    if grid.tokens == frames:
        return
    count = data.draw(st.integers(frames, grid.tokens - 1))
    found = smaller(grid, count)
    assert found.frames == frames
    assert found.tokens <= count
    assert found == smaller(grid, count)
    # Every grid that rounding gives at some scale, whichever way halves go.
    shapes = {_drawn(grid, scale, up) for scale in _scales(grid) for up in (False, True)}
    assert found.per_frame >= max((r * c for r, c in shapes if frames * r * c <= count), default=1)
    # No side is farther than one rounding from a common scale.
    low = max(Fraction(2 * found.rows - 1, 2 * rows), Fraction(2 * found.cols - 1, 2 * cols))
    high = min(Fraction(2 * found.rows + 1, 2 * rows), Fraction(2 * found.cols + 1, 2 * cols))
    assert low <= high or 1 in (found.rows, found.cols)


def _scales(grid: Grid) -> list[Fraction]:
    """Where a side is half a visual token from its next length."""
    return sorted({Fraction(2 * n + 1, 2 * side) for side in (grid.rows, grid.cols) for n in range(1, side)})


def _drawn(grid: Grid, scale: Fraction, up: bool) -> tuple[int, int]:
    half = Fraction(1, 2)
    sides = [grid.rows * scale + half, grid.cols * scale + half]
    found = [int(side) - (not up and side == int(side)) for side in sides]
    return max(1, found[0]), max(1, found[1])


@given(SIDES, SIDES, st.data())
def test_more_budget_never_means_less(rows: int, cols: int, data: st.DataObject) -> None:
    grid = Grid(1, rows, cols)
    counts = sorted(data.draw(st.lists(st.integers(1, grid.tokens), min_size=2, max_size=5)))
    sizes = [(found.rows, found.cols) for found in (smaller(grid, count) for count in counts)]
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(sizes))
    assert all(r <= rows and c <= cols for r, c in sizes)


@given(SIDES, SIDES, st.integers(1, 8))
def test_a_budget_of_all_draws_nothing_smaller(rows: int, cols: int, frames: int) -> None:
    assert smaller(Grid(frames, rows, cols), frames * rows * cols) == Grid(frames, rows, cols)


def test_every_frame_needs_a_token() -> None:
    assert smaller(Grid(4, 3, 4), 4) == Grid(4, 1, 1)
    with pytest.raises(ValueError, match="fewer than the 4 frames"):
        RESIZE.resized(Grid(4, 3, 4), 3)


def test_it_chooses_nothing_and_others_resize_nothing() -> None:
    with pytest.raises(NotImplementedError):
        RESIZE.select(torch.rand(12, 4), Grid(1, 3, 4), 5, Context())
    for name in VISUAL.names():
        strategy: Strategy = VISUAL.create(name)
        assert (strategy.resized(Grid(1, 3, 4), 5) is not None) == (name == "resize")
