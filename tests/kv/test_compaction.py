"""The worker observes the queries of the window that the scheduler's next command will look at."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.budget.kv import KvSpec
from vllm_prune.kv.compaction import CachedRequest
from vllm_prune.kv.group_budgets import GroupBudgets
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
