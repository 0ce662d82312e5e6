"""The worker observes the queries of the window that the scheduler's next command will look at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.budget.kv import KvSpec
from vllm_prune.kv.cache import StridedRows
from vllm_prune.kv.cached_request import CachedRequest
from vllm_prune.kv.commands import Compaction
from vllm_prune.kv.compaction import Compactor
from vllm_prune.kv.group_budgets import GroupBudgets
from vllm_prune.kv.strategies.base import LayerView, Scores
from vllm_prune.kv.strategies.streaming import Streaming


@given(
    prompt=st.integers(10, 200),
    tokens=st.integers(9, 220),
    buffer=st.integers(1, 40),
    window=st.integers(1, 8),
    compactions=st.integers(0, 3),
)
def test_the_next_window_is_observed_from_its_first_query(
    prompt: int, tokens: int, buffer: int, window: int, compactions: int
) -> None:
    spec = KvSpec("streaming", max_tokens=tokens, buffer=buffer, window=window)
    budgets = GroupBudgets(spec, prompt, (1,), (spec.count(prompt),))
    request = CachedRequest(budgets, Streaming(), torch.empty(0), (), 0, list(range(window)))
    computed, compacted = prompt, 0
    while True:
        rows = computed - request.evicted[0]
        if spec.due(prompt, rows, compacted > 0):
            # The command stands for the rows that are cached now, and its window for the last of them.
            assert budgets.observed_from(request.evicted) == computed - window
            assert request.observed(0, computed) == range(computed - window, computed)
            if compacted == compactions:
                return
            request.evicted, compacted = [computed - spec.count(prompt)], compacted + 1
        computed += 1


class Recording(Streaming):
    """Keeps the first row and the last ones, other ones in each layer, and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.views: list[LayerView] = []

    def select(self, view: LayerView, count: int) -> tuple[torch.Tensor, Scores]:
        self.views.append(view)
        first = torch.arange(view.rows - count + 1, view.rows)
        kept = torch.stack([torch.cat([torch.tensor([view.layer + head]), first]) for head in range(len(view.keys))])
        return kept, Scores(torch.zeros(len(view.keys), view.rows))


def test_views_say_where_rows_stood_in_the_prompt_at_every_compaction() -> None:
    heads, size, prompt = 2, 4, 14
    media = torch.tensor([-1] * 3 + [0] * 5 + [-1] + [1] * 4 + [-1])
    items = ((media == 0).nonzero().squeeze(1), (media == 1).nonzero().squeeze(1))
    layers = [SimpleNamespace(kv_cache=torch.randn(20, heads, size, 16), impl=SimpleNamespace(scale=1.0))] * 2
    compactor = Compactor(layers, [StridedRows(layer) for layer in layers], cast(Any, None), None, None, size)
    budgets = GroupBudgets(KvSpec("streaming", max_tokens=6, window=3), prompt, (1,), (6,))
    strategy = Recording()
    request = CachedRequest(budgets, strategy, media, items, 0, [])
    compactor.run(Compaction("r", prompt, 6, 0, (0, 1, 2, 3), (10, 11)), request)
    assert [view.first for view in strategy.views] == [True, True]
    for view in strategy.views:
        assert view.positions.tolist() == [list(range(prompt))] * heads
        assert view.media.tolist() == [media.tolist()] * heads
        assert view.items is items
    # Two tokens are decoded, then the six rows that each layer kept stand before them.
    compactor.run(Compaction("r", 8, 6, 8, (10, 11), (12, 13)), request)
    for layer, view in enumerate(strategy.views[2:]):
        assert not view.first
        assert view.items == ()
        for head in range(heads):
            positions = [layer + head, *range(9, 14), 14, 15]
            assert view.positions[head].tolist() == positions
            assert view.media[head].tolist() == [int(media[p]) if p < prompt else -1 for p in positions]
    assert request.evicted == [10]
