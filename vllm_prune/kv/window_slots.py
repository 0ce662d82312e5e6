"""How many observed queries the workers hold at once, and which requests hold them.

The store of a worker is allocated before vLLM sizes the KV cache, and never grows. The scheduler counts its slots
with the same numbers: a request whose window does not fit waits until others have ended.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from ..budget.kv import DEFAULT_WINDOW, KvSpec
from ..catalogue import KV
from ..config.worker_facts import WorkerFacts
from ..signals import KvSignal

GATED = "dyvte"
"""The strategy whose gates the configuration names under `weights`."""


@dataclass(frozen=True)
class WindowLimits:
    """Size of the store.

    Attributes:
        max_window: longest window of one request, in rows.
        slots: rows that the store has in every layer: a default window for each request that may have one at once,
            or one longest window, if that is more.
        requests: most requests that have a window at once.
        sums: most requests at once whose prompt's queries are summed up.
        gates: whether the operator has configured trained gates, for each request that has a window.
    """

    max_window: int
    slots: int
    requests: int
    sums: int = 0
    gates: bool = False

    @classmethod
    def of(cls, vllm_config: Any) -> WindowLimits:
        """The limits of an engine; its scheduler and all its workers find the same."""
        facts, sequences = WorkerFacts.of(vllm_config), vllm_config.scheduler_config.max_num_seqs
        requests = sequences if facts.observed_requests is None else min(sequences, facts.observed_requests)
        slots = max(facts.max_window, DEFAULT_WINDOW * requests)
        return cls(facts.max_window, slots, requests, facts.prompt_queries, GATED in facts.weights)

    def bounded(self, spec: KvSpec, prompt: int) -> KvSpec:
        """The budget as it is carried out: window and buffer within what the engine can bear.

        What the request named and does not get is in `clamped`.
        """
        count, quadratic = spec.count(prompt), KV.strategy_class(spec.strategy).quadratic
        window, buffer = spec.window_of(count, self.max_window), spec.buffer_of(count, quadratic)
        return replace(spec, window=window, buffer=buffer)

    def clamped(self, spec: KvSpec, prompt: int) -> list[dict[str, Any]]:
        """Entries of `usage.pruning.clamped` for a request."""
        return spec.clamped(prompt, self.max_window, KV.strategy_class(spec.strategy).quadratic)

    def slots_of(self, spec: KvSpec, prompt: int) -> int:
        """Slots that a request holds: its window, or none where its strategy looks at no queries."""
        return self.bounded(spec, prompt).window if observes(spec) else 0

    def lacks(self, spec: KvSpec) -> bool:
        """Whether a budget needs what the operator has configured nothing for."""
        return (sums(spec) and self.sums == 0) or (gated(spec) and not self.gates)


def observes(spec: KvSpec) -> bool:
    """Whether a budget's strategy looks at the last queries."""
    return "queries" in _wanted(spec)


def sums(spec: KvSpec) -> bool:
    """Whether a budget's strategy takes sums over all queries of the prompt."""
    return "moments" in _wanted(spec)


def gated(spec: KvSpec) -> bool:
    """Whether a budget's strategy asks trained gates."""
    return "gates" in _wanted(spec)


def _wanted(spec: KvSpec) -> frozenset[KvSignal]:
    return KV.create(spec.strategy, json.loads(spec.options)).wanted()


class WindowSlots:
    """The scheduler's account of the slots, of windows and of sums.

    Args:
        limits: size of the store.

    Attributes:
        needed: slots that each request with a KV budget holds while it runs, by its id.
        held: slots of the requests that hold theirs.
        free: slots that no request holds.
        summing: requests whose prompt's queries are summed up, and whether they hold a slot for it.
        whole: requests whose whole prompt has to be computed, as something of all its tokens is summed up.
    """

    def __init__(self, limits: WindowLimits) -> None:
        self.limits = limits
        self.needed: dict[str, int] = {}
        self.held: dict[str, int] = {}
        self.free = limits.slots
        self.summing: dict[str, bool] = {}
        self.whole: set[str] = set()
        self._exhausted = False

    def register(self, request_id: str, spec: KvSpec, prompt: int) -> None:
        """Note what a request needs."""
        self.needed[request_id] = self.limits.slots_of(spec, prompt)
        if sums(spec):
            self.summing[request_id] = False
        if sums(spec) or gated(spec):
            self.whole.add(request_id)

    def begin_step(self) -> None:
        """To be called before `acquire` is, for the waiting requests of a step in their order."""
        self._exhausted = False

    def acquire(self, request_id: str) -> bool:
        """Whether a request may run; from then on, and when it is preempted, it holds its slots until `release`.

        Once one request does not fit, those behind it wait, too: short windows would starve a long one otherwise.
        """
        count = self.needed.get(request_id, 0)
        windowless = count == 0 or request_id in self.held
        sumless = self.summing.get(request_id, True)
        if windowless and sumless:
            return True
        full = not windowless and (count > self.free or len(self.held) == self.limits.requests)
        if self._exhausted or full or (not sumless and sum(self.summing.values()) == self.limits.sums):
            self._exhausted = True
            return False
        if not windowless:
            self.held[request_id] = count
            self.free -= count
        if not sumless:
            self.summing[request_id] = True
        return True

    def release(self, request_id: str) -> None:
        """Free the slots of a request and remove its entry."""
        self.needed.pop(request_id, None)
        self.free += self.held.pop(request_id, 0)
        self.summing.pop(request_id, None)
        self.whole.discard(request_id)
