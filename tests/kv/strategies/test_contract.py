"""What every KV strategy promises."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_prune.catalogue import KV
from vllm_prune.kv.strategies.base import KvStrategy, LayerView, Scores

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
    """Tensor parallelism gives each rank some of the heads; what they keep is what one process keeps of them."""
    strategy, parts, ranks = KV.create(name), ((0, 2), (2, 4)), Ranks(2)
    whole = view(4, 2, 40, 2, 4, 3)
    both, scores = strategy.select(whole, 15)
    halves = ranks.run([replace(view(4, 2, 40, 2, 4, 3, heads=part), total=ranks.total) for part in parts], name, 15)
    assert torch.equal(torch.cat([kept for kept, _ in halves]), both)
    later = advance(whole, both, scores, 9)
    again = [_of_heads(later, part, total=ranks.total) for part in parts]
    kept = torch.cat([kept for kept, _ in ranks.run(again, name, 15)])
    assert torch.equal(kept, strategy.select(later, 15)[0])


@pytest.mark.parametrize("name", KV.names())
def test_other_requests_change_nothing(name: str) -> None:
    """Two requests whose compactions alternate, by one strategy, keep what each keeps alone."""
    requests = [view(2, 2, 60, 3, 6, 1), view(2, 2, 45, 4, 6, 2)]
    alone = [_twice(KV.create(name), seen) for seen in requests]
    strategy, state = KV.create(name), torch.get_rng_state()
    inputs = [tensor.clone() for seen in requests for tensor in _tensors(seen)]
    firsts = [strategy.select(seen, 25) for seen in requests]
    for seen, first, (kept, again) in zip(requests, firsts, alone, strict=True):
        assert torch.equal(first[0], kept)
        assert torch.equal(strategy.select(advance(seen, *first, 9), 25)[0], again)
    assert torch.equal(torch.get_rng_state(), state)
    for tensor, before in zip((tensor for seen in requests for tensor in _tensors(seen)), inputs, strict=True):
        assert torch.equal(tensor, before)


def _twice(strategy: KvStrategy, seen: LayerView) -> tuple[torch.Tensor, torch.Tensor]:
    first = strategy.select(seen, 25)
    return first[0], strategy.select(advance(seen, *first, 9), 25)[0]


def _tensors(seen: LayerView) -> list[torch.Tensor]:
    fields = (
        seen.keys,
        seen.values(),
        seen.queries,
        seen.saliency,
        seen.normed_saliency,
        seen.coordinates,
        seen.rotation,
    )
    return [tensor for tensor in fields if tensor is not None]


class Ranks:
    """Tensor-parallel ranks, each a thread, whose tensors can be summed."""

    def __init__(self, count: int) -> None:
        self._parts: dict[int, torch.Tensor] = {}
        self._barrier = threading.Barrier(count, timeout=60)

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in the order of their numbers, as all of them have to get the same."""
        self._parts[threading.get_ident()] = tensor
        self._barrier.wait()
        summed = torch.stack([self._parts[rank] for rank in sorted(self._parts)]).sum(dim=0)
        self._barrier.wait()
        return summed

    def run(self, views: list[LayerView], name: str, count: int) -> list[tuple[torch.Tensor, Scores]]:
        """What each rank selects of its view."""
        with ThreadPoolExecutor(len(views)) as threads:
            self._parts.clear()
            return list(threads.map(lambda seen: KV.create(name).select(seen, count), views))


def _of_heads(seen: LayerView, part: tuple[int, int], total: Callable[[torch.Tensor], torch.Tensor]) -> LayerView:
    """A rank's part of a view."""
    heads, (first, last) = len(seen.keys), part
    assert seen.queries is not None
    group = seen.queries.shape[1] // heads
    return replace(
        seen,
        keys=seen.keys[first:last],
        values=lambda: seen.values()[first:last],
        positions=seen.positions[first:last],
        media=seen.media[first:last],
        queries=seen.queries[:, first * group : last * group],
        carried={name: carried[first:last] for name, carried in seen.carried.items()},
        head_offset=first,
        total=total,
    )


@pytest.mark.parametrize("name", KV.names())
def test_needs_cover_what_the_defaults_want(name: str) -> None:
    strategy = KV.create(name)
    assert strategy.wanted() <= strategy.needs
    assert strategy.name == name
    assert strategy.summary
    assert strategy.paper
