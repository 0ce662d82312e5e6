"""Placeholders in run lengths, and what a budget leaves of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.grid import Grid
from vllm_prune.visual.models.segments import FixedMask, item_grid, mask_of, runs_of, segments_of, thinned

MASKS = st.lists(st.booleans(), min_size=1, max_size=40)


@given(MASKS)
def test_segments_say_what_the_mask_says(flags: list[bool]) -> None:
    segments = segments_of(torch.tensor(flags), len(flags))
    assert mask_of(segments).tolist() == flags
    assert all((a > 0) != (b > 0) for a, b in pairwise(segments))


def test_no_mask_means_that_everything_is_embedded() -> None:
    assert segments_of(None, 7) == (7,)


@given(MASKS, st.data())
def test_text_stays_and_runs_are_cut_to_their_counts(flags: list[bool], data: st.DataObject) -> None:
    segments = segments_of(torch.tensor(flags), len(flags))
    counts = [data.draw(st.integers(0, n)) for n in runs_of(segments)]
    tokens = list(range(len(flags)))
    kept, is_embed = thinned(tokens, segments, counts) if sum(counts) or not all(flags) else ([], FixedMask(()))
    assert [token for token in kept if not flags[token]] == [token for token in tokens if not flags[token]]
    assert len([token for token in kept if flags[token]]) == sum(counts)
    if kept:
        assert is_embed(kept).tolist() == [flags[token] for token in kept]


def test_a_row_that_keeps_nothing_still_has_its_separator() -> None:
    kept, is_embed = thinned([1, 1, 9, 1, 1, 9, 1, 1, 8], (2, -1, 2, -1, 2, -1), [1, 0, 2])
    assert kept == [1, 9, 9, 1, 1, 8]
    assert is_embed.segments == (1, -2, 2, -1)


@pytest.mark.parametrize(
    ("runs", "size", "rows", "grid"),
    [
        ([24], (1, 8, 12), False, Grid(1, 4, 6)),
        ([4, 4], (2, 4, 4), False, Grid(2, 2, 2)),
        ([6, 6, 6], None, True, Grid(1, 3, 6)),
        ([16, 16], None, False, Grid(2, 1, 16)),
        # All frames share their visual tokens.
        ([24], (4, 8, 12), False, Grid(1, 4, 6)),
        ([24], (8, 12), False, Grid(1, 4, 6)),
        ([169, 81, 81], None, False, Grid(1, 1, 331)),
    ],
)
def test_grids(runs: list[int], size: tuple[int, ...] | None, rows: bool, grid: Grid) -> None:
    assert item_grid(runs, size, 2, rows) == grid
