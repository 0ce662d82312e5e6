"""Compactions that keep every row in another order, often: answers must be those of a cache that is left alone."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_prune.kv.scheduler import CompactingMixin, Planned
from vllm_prune.kv.strategies.base import KvStrategy, LayerView, Scores

EVERY = 45


class Shuffle(KvStrategy):
    """Keeps everything, in an order of its own for every layer and head."""

    name = "shuffle"
    paper = summary = "test"

    def score(self, view: LayerView) -> Scores:
        """Not asked for."""
        raise AssertionError

    def select(self, view: LayerView, count: int) -> tuple[torch.Tensor, Scores]:
        """A permutation."""
        assert count == view.rows
        noise = torch.Generator().manual_seed(view.seed % 1000 + 7 * view.layer + count)
        order = torch.rand(len(view.keys), count, generator=noise).argsort(dim=1)
        return order.to(view.keys.device), Scores(view.positions.float())


class ShufflingMixin(CompactingMixin):
    """Orders a compaction to the same length every `EVERY` rows.

    Attributes:
        done: rows of each request when it was last compacted.
        ordered: compactions so far.
        preempted: preemptions so far.
        ahead: compactions that were ordered before the answer of the step before was there.
    """

    done: dict[str, int]
    ordered = 0
    preempted = 0
    ahead = 0

    def _plan(self) -> list[Planned]:
        self.done = getattr(self, "done", {})
        assert self.compacting is not None
        plans = []
        for request in self.running:
            name, rows = request.request_id, request.num_computed_tokens
            if name not in self.budgets or request.is_prefill_chunk or rows - self.done.get(name, 0) < EVERY:
                continue
            planned = self.compacting.compact(name, [(0, rows, rows)])
            if planned is not None:
                plans.append(Planned.of(planned))
                self.done[name] = rows
                self.ordered += 1
                self.ahead += request.num_output_placeholders > 0
        return plans

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self.done.pop(request.request_id, None)
        self.preempted += 1
        return super()._preempt_request(request, *args, **kwargs)


class ShufflingScheduler(ShufflingMixin, Scheduler):
    """The synchronous kind."""


class AsyncShufflingScheduler(ShufflingMixin, AsyncScheduler):
    """The kind that schedules a step ahead."""
