"""How a video's tokens are split over its frames before the tower has run."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.grid import Grid
from vllm_prune.visual.frontend.frame_split import FrameSplit, frame_counts, frame_energy

grids = st.builds(Grid, st.integers(1, 12), st.integers(1, 5), st.integers(1, 5))
splits = st.sampled_from(["even", "energy"])


def film(grid: Grid, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Processor output of a video: four patches of 12 values per cell."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (grid.tokens * 4, 12), generator=generator).to(dtype)


@given(grid=grids, split=splits, seed=st.integers(0, 99), data=st.data())
def test_counts_fit(grid: Grid, split: FrameSplit, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, grid.tokens))
    counts = frame_counts(count, grid, film(grid, seed), split)
    assert len(counts) == grid.frames
    assert sum(counts) == count
    assert max(counts) <= grid.per_frame
    assert min(counts) >= (1 if count >= grid.frames else 0)


@given(grid=grids, data=st.data())
def test_even_counts_differ_by_one(grid: Grid, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, grid.tokens))
    counts = frame_counts(count, grid, None, "even")
    assert max(counts) - min(counts) <= 1


@given(grid=grids, data=st.data())
def test_without_pixels_energy_is_even(grid: Grid, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, grid.tokens))
    assert frame_counts(count, grid, None, "energy") == frame_counts(count, grid, None, "even")


def test_change_gets_the_tokens() -> None:
    grid = Grid(4, 4, 5)
    patches = film(Grid(1, 4, 5), 0).repeat(4, 1)
    patches.view(4, -1)[2:] = film(Grid(1, 4, 5), 1).flatten()
    assert frame_energy(patches, 4) == [1001, 1, 1001, 1]
    counts = frame_counts(20, grid, patches, "energy")
    assert counts[0] == counts[2] > 5 * counts[1] > 0
    assert counts[3] >= 1


def test_raw_bytes_do_not_wrap() -> None:
    grid = Grid(5, 3, 3)
    assert frame_energy(film(grid, 3, torch.uint8), 5) == frame_energy(film(grid, 3), 5)


def test_still_video_and_single_frame() -> None:
    assert frame_energy(torch.zeros(8, 12), 4) == [1001, 1, 1, 1]
    assert frame_energy(torch.zeros(8, 12), 1) == [1]


@given(seed=st.integers(0, 99))
def test_threads_do_not_change_the_split(seed: int) -> None:
    grid, threads = Grid(6, 4, 4), torch.get_num_threads()
    patches = film(grid, seed)
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(frame_energy(patches, grid.frames))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
