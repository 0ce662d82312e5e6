"""Digits, step offsets and the layout of a prompt against references that go token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import emulated_graphs
from vllm_prune.visual.models.positions import (
    BASE,
    COLUMNS,
    Run,
    StepOffsets,
    attach,
    detach,
    grid_positions,
    lay_out,
    members_of,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
coordinates = st.lists(st.tuples(*[st.integers(0, BASE**2 - 1)] * 3), min_size=1, max_size=40)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_position_survives(dtype: torch.dtype) -> None:
    relative = torch.arange(BASE**2).expand(3, -1)
    rows, found = detach(attach(torch.ones(BASE**2, 1, dtype=dtype), relative), 1)
    assert found is not None
    assert torch.equal(found, relative)
    assert rows.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@given(triples=coordinates, width=st.integers(1, 5))
def test_attach_and_detach_are_inverse(dtype: torch.dtype, triples: list[tuple[int, int, int]], width: int) -> None:
    relative = torch.tensor(triples).t()
    embeddings = torch.randn(len(triples), width, generator=torch.Generator().manual_seed(0)).to(dtype)
    wide = attach(embeddings, relative)
    assert wide.shape == (len(triples), width + COLUMNS)
    rows, found = detach(wide, width)
    assert torch.equal(rows, embeddings)
    assert found is not None
    assert torch.equal(found, relative)
    assert members_of(wide, width) is None


@pytest.mark.parametrize("dtype", DTYPES)
@given(triples=coordinates, width=st.integers(1, 5), parts=st.integers(1, 16), seed=st.integers(0, 99))
def test_coordinates_of_members_travel_behind_those_of_the_cell(
    dtype: torch.dtype, triples: list[tuple[int, int, int]], width: int, parts: int, seed: int
) -> None:
    relative, generator = torch.tensor(triples).t(), torch.Generator().manual_seed(seed)
    members = torch.randint(0, BASE**2, (3, len(triples), parts), generator=generator)
    embeddings = torch.randn(len(triples), width, generator=generator).to(dtype)
    wide = attach(embeddings, relative, members)
    assert wide.shape == (len(triples), width + COLUMNS + COLUMNS * parts)
    assert wide.dtype == dtype
    rows, found = detach(wide, width)
    assert torch.equal(rows, embeddings)
    assert found is not None
    assert torch.equal(found, relative)
    several = members_of(wide, width)
    assert several is not None
    assert torch.equal(several, members)


def test_detach_of_unpruned_rows_is_the_input() -> None:
    embeddings = torch.randn(4, 8)
    rows, found = detach(embeddings, 8)
    assert rows is embeddings
    assert found is None
    assert members_of(embeddings, 8) is None


@given(
    frames=st.integers(1, 6), rows=st.integers(1, 5), cols=st.integers(1, 5), step=st.sampled_from([0, 1, 1.667, 10.0])
)
def test_grid_positions_are_in_raster_order(frames: int, rows: int, cols: int, step: float) -> None:
    expected = [(int(t * step), h, w) for t in range(frames) for h in range(rows) for w in range(cols)]
    assert grid_positions(frames, rows, cols, step).t().tolist() == [list(cell) for cell in expected]


def test_frame_step_is_multiplied_in_double_precision() -> None:
    # 2.4 sampled frames per second: as float32 the step is just below 5 / 3, so grid step 3 stays at 4.
    step = float(np.float32(2 / 2.4)) * 2
    assert grid_positions(4, 1, 1, step)[0].tolist() == [0, 1, 3, 4]
    assert grid_positions(4, 1, 1, 2 / 2.4 * 2)[0].tolist() == [0, 1, 3, 5]


@dataclass(frozen=True)
class Piece:
    """Text tokens, then a media run: its grid, and how many slots it keeps (None: all, unpruned)."""

    text: int
    grid: tuple[int, int, int]
    kept: int | None


pieces = st.lists(
    st.builds(
        Piece,
        st.integers(0, 6),
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
        st.none() | st.integers(0, 5),
    ),
    max_size=5,
)


def runs_of(prompt: list[Piece]) -> tuple[list[Run], int]:
    """The runs, and the prompt's length so far."""
    runs, at = [], 0
    for piece in prompt:
        at += piece.text
        relative = grid_positions(*piece.grid)
        count = relative.shape[1] if piece.kept is None else piece.kept
        extent = int(relative.max()) + 1
        runs.append(Run(np.arange(at, at + count), at, extent, relative if piece.kept is None else None))
        at += count
    return runs, at


def slow_positions(prompt: list[Piece], tail: int) -> tuple[list[list[int]], int]:
    """One token after the other; also the position of the token that follows the prompt."""
    out: list[list[int]] = []
    following = 0
    for piece in prompt:
        for _ in range(piece.text):
            out.append([following] * 3)
            following += 1
        cells = grid_positions(*piece.grid).t().tolist()
        placed = cells if piece.kept is None else [[0, 0, 0]] * piece.kept
        out += [[following + axis for axis in cell] for cell in placed]
        following += max(max(cell) for cell in cells) + 1
    for _ in range(tail):
        out.append([following] * 3)
        following += 1
    return out, following


@given(prompt=pieces, tail=st.integers(0, 6))
def test_lay_out_is_the_slow_layout(prompt: list[Piece], tail: int) -> None:
    runs, length = runs_of(prompt)
    positions, delta = lay_out(length + tail, runs)
    expected, following = slow_positions(prompt, tail)
    assert positions.t().tolist() == expected
    assert delta == following - (length + tail)


@given(prompt=pieces, tail=st.integers(1, 6), data=st.data())
def test_text_positions_do_not_depend_on_the_budget(prompt: list[Piece], tail: int, data: st.DataObject) -> None:
    unpruned = [Piece(piece.text, piece.grid, None) for piece in prompt]
    ends = []
    for version in (prompt, unpruned):
        runs, length = runs_of(version)
        positions, delta = lay_out(length + tail, runs)
        ends.append((positions[:, length:].tolist(), delta + length + tail))
    assert ends[0] == ends[1]


class Step:
    """One step: lengths of text and of media slices, and offsets of those that are pruned."""

    def __init__(self, layout: list[tuple[int, int, bool]]) -> None:
        generator = torch.Generator().manual_seed(len(layout))
        mask: list[bool] = []
        self.relative: list[Tensor | None] = []
        self.lengths: list[int] = []
        expected = []
        for text, media, pruned in layout:
            mask += [False] * text + [True] * media
            own = torch.randint(0, 300, (3, media), generator=generator)
            self.relative.append(own if pruned else None)
            self.lengths.append(media)
            expected += [torch.zeros(3, text, dtype=torch.long), own * pruned]
        self.mask = torch.tensor(mask, dtype=torch.bool)
        self.expected = torch.cat([torch.zeros(3, 0, dtype=torch.long), *expected], dim=1)


steps = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6), st.booleans()), max_size=4).map(Step)


@given(first=steps, second=steps, padding=st.integers(0, 5))
def test_offsets_of_a_step(first: Step, second: Step, padding: int) -> None:
    offsets = StepOffsets(64)
    address = offsets.buffer.data_ptr()
    for step in (first, second):
        offsets.clear()
        offsets.write(step.relative, step.lengths, step.mask)
        positions = torch.arange(len(step.mask) + padding).expand(3, -1).clone()
        before = positions.clone()
        offsets.apply(positions)
        assert torch.equal(positions[:, : len(step.mask)] - before[:, : len(step.mask)], step.expected)
        assert torch.equal(positions[:, len(step.mask) :], before[:, len(step.mask) :])
    offsets.clear()
    positions = torch.zeros(3, 64, dtype=torch.long)
    offsets.apply(positions)
    assert not positions.any()
    # A captured graph reads this very memory.
    assert not offsets.buffer.any()
    assert offsets.buffer.data_ptr() == address


def test_step_without_pruned_items_writes_nothing() -> None:
    offsets = StepOffsets(8)
    offsets.write([None, None], [2, 1], torch.tensor([True, True, False, True]))
    assert not offsets.active


def test_replays_add_the_offsets_of_the_step_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured while the buffer holds nothing, as before vLLM serves."""
    emulated_graphs.install(monkeypatch)
    offsets, positions, graph = StepOffsets(4), torch.zeros(3, 4, dtype=torch.int64), emulated_graphs.Graph()
    with emulated_graphs.graph(graph):
        offsets.apply(positions)
    media = torch.tensor([False, True, True])
    for relative in (torch.arange(6).view(3, 2), torch.arange(6).view(3, 2) + 7):
        offsets.clear()
        offsets.write([relative], [2], media)
        positions.fill_(50)
        graph.replay()
        assert torch.equal(positions[:, 1:3], 50 + relative)
        assert (positions[:, [0, 3]] == 50).all()
    offsets.clear()
    positions.fill_(50)
    graph.replay()
    assert (positions == 50).all()
