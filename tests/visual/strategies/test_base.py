from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies.base import Context, Strategy, best, best_per_frame

CASES = settings(max_examples=150, deadline=None)


@st.composite
def scored(draw: st.DrawFn) -> tuple[Tensor, int]:
    frames, cells = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    # Few distinct values, so that ties are common.
    values = draw(st.lists(st.integers(0, 6), min_size=frames * cells, max_size=frames * cells))
    return torch.tensor(values, dtype=torch.float32), frames


@CASES
@given(scored(), st.data())
def test_raising_a_kept_score_never_evicts_it(case: tuple[Tensor, int], data: st.DataObject):
    scores, frames = case
    count = data.draw(st.integers(1, len(scores)))
    kept = best(scores, count, frames)
    cell = data.draw(st.sampled_from(kept.tolist()))
    raised = scores.clone()
    raised[cell] += data.draw(st.integers(1, 8))
    assert cell in best(raised, count, frames).tolist()


@CASES
@given(scored(), st.data())
def test_raising_a_kept_score_never_evicts_it_from_its_frame(case: tuple[Tensor, int], data: st.DataObject):
    scores, frames = case
    cells = len(scores) // frames
    per_frame = data.draw(st.lists(st.integers(0, cells), min_size=frames, max_size=frames).filter(any))
    cell = data.draw(st.sampled_from(best_per_frame(scores, per_frame).tolist()))
    raised = scores.clone()
    raised[cell] += data.draw(st.integers(1, 8))
    assert cell in best_per_frame(raised, per_frame).tolist()


@CASES
@given(scored(), st.data())
def test_ties_go_to_the_lower_index(case: tuple[Tensor, int], data: st.DataObject):
    scores, _ = case
    count = data.draw(st.integers(1, len(scores)))
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i))[:count]
    assert best(scores, count, 1).tolist() == expected


def test_the_floor_takes_the_best_of_each_frame():
    scores = torch.tensor([9.0, 8, 7, 0, 1, 0])
    assert best(scores, 3, 2).sort().values.tolist() == [0, 1, 4]
    assert best(scores, 1, 2).tolist() == [0]


class Pairs(Strategy):
    """Picks by content of the frame it is given; stands for strategies without pointwise scores."""

    name = "pairs"

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        return tokens[:, 0].argsort(descending=True)[:count]


def test_span_strategies_choose_inside_each_frame():
    tokens = torch.tensor([[1.0], [2], [3], [6], [5], [4]])
    kept = Pairs().select(tokens, Grid(2, 1, 3), 3, Context(), [1, 2])
    assert kept.tolist() == [2, 3, 4]


def test_a_strategy_has_to_choose():
    class Nothing(Strategy):
        name = "nothing"

    with pytest.raises(NotImplementedError, match="neither score nor select_span"):
        Nothing().select(torch.rand(4, 2), Grid(1, 2, 2), 1, Context())


def test_pixel_strategies_say_that_features_are_not_enough():
    with pytest.raises(NotImplementedError, match="select_cells"):
        VISUAL.create("gui_dedup").select(torch.rand(4, 2), Grid(1, 2, 2), 1, Context())
