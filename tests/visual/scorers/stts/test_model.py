"""The scorer against the formulas of algorithms in float64, cell by cell; nothing of its code is used there."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vllm_prune.grid import Grid
from vllm_prune.visual.scorers.stts.model import Scorer, Shape, key_bias, lone_frames

CASES = settings(max_examples=25, deadline=None)


def scorer_of(width: int, heads: int, hidden: int, merge: int, **more: Any) -> Scorer:
    torch.manual_seed(width * hidden + merge)
    scorer = Scorer(Shape(width, heads, hidden, merge, **{"after": 1, **more}))
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return scorer.eval().requires_grad_(False)


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def pooled(scorer: Scorer, cell: Tensor, mask: Tensor) -> Tensor:
    """One cell, [U, D] float64."""
    weights = {name: weight.double() for name, weight in scorer.state_dict().items()}
    cell = cell * mask[:, None]
    query = linear(weights, "pooler.wq", cell.sum(0) / len(cell))
    size, found = len(query) // scorer.shape.heads, []
    for head in range(scorer.shape.heads):
        part = slice(head * size, (head + 1) * size)
        present = [i for i in range(len(cell)) if mask[i]]
        keys = torch.stack([linear(weights, "pooler.wk", cell[i])[part] for i in present])
        values = torch.stack([linear(weights, "pooler.wv", cell[i])[part] for i in present])
        found.append((keys @ query[part] / math.sqrt(size)).softmax(0) @ values)
    return linear(weights, "pooler.wo", torch.cat(found))


def scored(scorer: Scorer, before: Tensor, now: Tensor) -> float:
    weights = {name: weight.double() for name, weight in scorer.state_dict().items()}
    x = torch.cat([before, now])
    for name in ("mlp.w1", "mlp.w2"):
        x = linear(weights, name, x)
        x = x / (1 + (-x).exp())
    return 1 / (1 + math.exp(-linear(weights, "mlp.w3", x).item()))


@st.composite
def towers(draw: st.DrawFn) -> tuple[Scorer, list[Grid], Tensor, Tensor]:
    heads, merge = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 3]))
    scorer = scorer_of(heads * draw(st.integers(1, 5)), heads, draw(st.integers(1, 9)), merge)
    sizes = st.builds(Grid, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
    grids = draw(st.lists(sizes, min_size=1, max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    cells = torch.randn(sum(g.tokens for g in grids), merge**2, scorer.shape.width, generator=generator)
    mask = torch.rand(cells.shape[:2], generator=generator) < 0.7
    mask[:, 0] = True
    return scorer, grids, cells, mask


@CASES
@given(towers(), st.booleans())
def test_scores(case: tuple[Scorer, list[Grid], Tensor, Tensor], masked: bool) -> None:
    scorer, grids, cells, mask = case
    if not masked:
        mask = torch.ones_like(mask)
    found = scorer.score(scorer.pool(cells, mask if masked else None), grids)
    expected, start = [], 0
    for grid in grids:
        rows = [pooled(scorer, cells[start + i].double(), mask[start + i]) for i in range(grid.tokens)]
        nothing = torch.zeros_like(rows[0])
        expected += [scored(scorer, rows[i - grid.per_frame] if i >= grid.per_frame else nothing, row)
                     for i, row in enumerate(rows)]  # fmt: skip
        start += grid.tokens
    assert found.dtype == torch.float32
    assert (found.double() - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-5


@pytest.mark.parametrize("rescale", ["row", "frame", "video"])
@CASES
@given(data=st.data())
def test_bias(rescale: Any, data: st.DataObject) -> None:
    grid = Grid(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))
    other = Grid(2, 1, 2)
    values = st.floats(0, 1, width=32)
    scores = torch.tensor(data.draw(st.lists(values, min_size=grid.tokens, max_size=grid.tokens)))
    found = key_bias(torch.cat([scores, torch.rand(4)]), [grid, other], rescale)[: grid.tokens]
    cells = scores.double().view(grid.frames, grid.rows, grid.cols)
    for t in range(grid.frames):
        for r in range(grid.rows):
            group = {"row": cells[t, r], "frame": cells[t], "video": cells}[rescale].flatten().tolist()
            for c in range(grid.cols):
                low, high = min(group), max(group)
                weight = math.exp(-2) + (cells[t, r, c].item() - low) * (1 - math.exp(-2)) / (high - low + 1e-6)
                expected = 0.0 if t == 0 and grid.frames > 1 else math.log(weight)
                assert abs(found.view(cells.shape)[t, r, c].item() - expected) < 2e-5
    assert found.max() <= 1e-6
    assert found.min() >= -2 - 1e-5


def test_every_item_starts_anew_and_alone() -> None:
    """An item scores in a batch as it scores alone, bit for bit; the frame before is that of the same item."""
    scorer, grids = scorer_of(8, 2, 16, 2), [Grid(3, 2, 3), Grid(1, 2, 2), Grid(2, 2, 3)]
    cells = torch.randn(sum(grid.tokens for grid in grids), 4, 8)
    together = scorer.score(scorer.pool(cells), grids)
    parts = cells.split([grid.tokens for grid in grids])
    alone = [scorer.score(scorer.pool(part), [grid]) for part, grid in zip(parts, grids, strict=True)]
    assert (together - torch.cat(alone)).abs().max() < 1e-6
    # A control: as one item, the second frame of the last one has another frame before it.
    assert (scorer.score(scorer.pool(parts[0]), [Grid(1, 6, 3)]) - alone[0]).abs()[6:].max() > 1e-3


def test_half_precision_is_widened() -> None:
    scorer, cells = scorer_of(8, 2, 16, 2), torch.randn(6, 4, 8).bfloat16()
    assert torch.equal(scorer.pool(cells), scorer.pool(cells.float()))


def test_the_paper_size() -> None:
    """33.8 million parameters for the tower of Molmo2 (section 3)."""
    with torch.device("meta"):
        scorer = Scorer(Shape(1152, 16, 4304, 3, 4))
    assert round(sum(p.numel() for p in scorer.parameters()) / 1e6, 1) == 33.8


@pytest.mark.parametrize(
    "change", [{"heads": 3}, {"width": 0}, {"after": -1}, {"rescale": "column"}, {"refill": "always"}]
)
def test_impossible_shapes_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Shape(**{"width": 8, "heads": 2, "hidden": 4, "merge": 2, "after": 1, **change})


@CASES
@given(st.lists(st.integers(0, 9), max_size=12))
def test_lone_frames(counts: list[int]) -> None:
    capacity = 9
    lone = lone_frames(counts, capacity)
    # Slow and plain: bins as lists of frames.
    bins: list[list[int]] = []
    for frame in sorted([i for i, n in enumerate(counts) if n], key=lambda i: (-counts[i], i)):
        room = [b for b in bins if sum(counts[i] for i in b) + counts[frame] <= capacity]
        if room:
            room[0].append(frame)
        else:
            bins.append([frame])
    assert lone == sorted(b[0] for b in bins if len(b) == 1)
    assert {i for i, n in enumerate(counts) if n == capacity} <= set(lone)
