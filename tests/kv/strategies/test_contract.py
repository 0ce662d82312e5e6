"""What every KV strategy promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_prune.catalogue import KV

from .views import advance, view

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(6, 60), st.integers(0, 4), st.integers(1, 4))


@pytest.mark.parametrize("name", KV.names())
@settings(max_examples=25)
@given(SHAPES, st.floats(0, 1), st.integers(0, 1000))
def test_exactly_the_count_with_the_window(
    name: str, shape: tuple[int, int, int, int, int], share: float, seed: int
) -> None:
    heads, group, rows, media, window = shape
    seen = view(heads, group, rows, media, window, seed)
    count = window + 1 + int(share * (rows - window - 1))
    keys = seen.keys.clone()
    kept, scores = KV.create(name).select(seen, count)
    _check(kept, heads, count, rows, window)
    assert torch.equal(keys, seen.keys)
    assert scores.rows.shape == (heads, rows)
    assert not scores.rows[:, : rows - window].isnan().any()
    assert torch.equal(KV.create(name).select(seen, count)[0], kept)
    everything, _ = KV.create(name).select(seen, rows)
    assert torch.equal(everything, torch.arange(rows).expand(heads, rows))
    later = advance(seen, kept, scores, 9)
    again, _ = KV.create(name).select(later, count)
    _check(again, heads, count, count + 9, window)


def _check(kept: torch.Tensor, heads: int, count: int, rows: int, window: int) -> None:
    assert kept.shape == (heads, count)
    assert (kept[:, 1:] > kept[:, :-1]).all()
    assert kept.min() >= 0
    assert torch.equal(kept[:, -window:], torch.arange(rows - window, rows).expand(heads, window))


@pytest.mark.parametrize("name", KV.names())
def test_a_rank_sees_the_heads_that_one_process_sees(name: str) -> None:
    """Tensor parallelism gives each rank some of the heads; what they keep does not depend on the others."""
    whole = view(4, 2, 40, 2, 4, 3)
    both = KV.create(name).select(whole, 15)[0]
    halves = [KV.create(name).select(view(4, 2, 40, 2, 4, 3, heads=part), 15)[0] for part in ((0, 2), (2, 4))]
    assert torch.equal(torch.cat(halves), both)


@pytest.mark.parametrize("name", KV.names())
def test_needs_cover_what_the_defaults_want(name: str) -> None:
    strategy = KV.create(name)
    assert strategy.wanted() <= strategy.needs
    assert strategy.name == name
    assert strategy.summary
    assert strategy.paper
