"""Engines that evict, a journal of what they kept, and the oracle's cache shortened by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vllm_prune.budget.kv import KEY, REPORT, KvSpec
from vllm_prune.kv.suitability import SCHEDULER, WORKER

from .engines import answer_of
from .media import Request
from .oracle import Oracle, compare

EVICTING: dict[str, Any] = {"scheduler_cls": SCHEDULER, "worker_cls": WORKER}
SPECS = [
    KvSpec("random", keep="0.5", buffer=16),
    KvSpec("random", keep="0.1", buffer=16),
    None,
    KvSpec("random", max_tokens=40, buffer=20, window=4),
    KvSpec("random", max_tokens=4096),
]
"""Budgets of a batch: by ratio and by count, with other windows, none at all, and one that evicts nothing."""


@dataclass
class Journal:
    """What a worker kept, in the order of its compactions: per request, per layer int64 [H, C] positions."""

    kept: dict[str, list[list[Tensor]]] = field(default_factory=dict)

    def of(self, number: int) -> list[list[Tensor]]:
        """Compactions of the request that the engine numbered so."""
        names = [name for name in self.kept if name.split("-")[0] == str(number)]
        return self.kept[names[0]] if names else []


@contextmanager
def compactions(after: Callable[[Any, Any, Any], None]) -> Iterator[None]:
    """Call `after` behind every compaction of in-process engines, with the compactor, the command and the request."""
    from vllm_prune.kv.compaction import Compactor

    original = Compactor.run

    def run(self: Any, command: Any, request: Any) -> float:
        seconds = original(self, command, request)
        after(self, command, request)
        return seconds

    Compactor.run = run  # type: ignore[method-assign]
    try:
        yield
    finally:
        Compactor.run = original  # type: ignore[method-assign]


@contextmanager
def journal() -> Iterator[Journal]:
    """Record the compactions of in-process engines."""
    recorded = Journal()

    def record(compactor: Any, command: Any, request: Any) -> None:
        recorded.kept.setdefault(command.request_id, []).append(
            [kept.clone().cpu() for _, kept in sorted(request.positions.items())]
        )

    with compactions(record):
        yield recorded


@contextmanager
def reports() -> Iterator[dict[str, dict[str, Any]]]:
    """Record the last report of each request by its number, as in-process schedulers write it.

    A process that has imported vLLM's server takes reports off the outputs before a test sees them.
    """
    from vllm_prune.kv import scheduler

    original, recorded = scheduler.attach, dict[str, dict[str, Any]]()

    def attach(outputs: Any, tallies: Any) -> None:
        original(outputs, tallies)
        for output in outputs:
            if REPORT in (output.kv_transfer_params or {}):
                recorded[output.request_id.split("-")[0]] = dict(output.kv_transfer_params[REPORT])

    scheduler.attach = attach
    try:
        yield recorded
    finally:
        scheduler.attach = original


class Evictor:
    """Shortens transformers' cache as a budget says, keeping the positions that the journal names.

    When to compact and to how many rows is worked out here anew; only which rows is taken from the engine.
    """

    def __init__(self, prompt: int, count: int, buffer: int, kept: Sequence[list[Tensor]]) -> None:
        self.count, self.buffer, self.kept = count, buffer, list(kept)
        self.limit = count if count < prompt else count + buffer
        self.held: list[Tensor] | None = None
        self.done = 0

    def __call__(self, layers: list[Any], computed: int) -> None:
        from transformers.cache_utils import DynamicLayer

        # States of a recurrence and rows of a sliding window, which are subclasses, stay.
        layers = [layer for layer in layers if type(layer) is DynamicLayer]
        rows = layers[0].keys.shape[2]
        if rows <= self.limit:
            return
        kept = self.kept[self.done]
        held = self._held(len(layers), layers[0].keys.shape[1], rows, computed)
        for layer, before, after in zip(layers, held, kept, strict=True):
            assert after.shape == (layer.keys.shape[1], self.count)
            index = torch.stack([torch.searchsorted(b, a) for b, a in zip(before, after, strict=True)])
            assert torch.equal(before.gather(1, index), after)
            take = index[None, :, :, None].expand(1, -1, -1, layer.keys.shape[3])
            layer.keys, layer.values = layer.keys.gather(2, take), layer.values.gather(2, take)
        self.held = [after.clone() for after in kept]
        self.done += 1
        self.limit = self.count + self.buffer

    def _held(self, layers: int, heads: int, rows: int, computed: int) -> list[Tensor]:
        if self.held is None:
            return [torch.arange(rows).expand(heads, -1)] * layers
        since = torch.arange(computed - (rows - self.count), computed).expand(heads, -1)
        return [torch.cat([held, since], dim=1).contiguous() for held in self.held]


def evict(
    llm: Any, requests: Sequence[Request], specs: Sequence[KvSpec | None], steps: int | Sequence[int]
) -> list[Any]:
    """Greedy outputs of all requests, each under its own KV budget; `steps` tokens of each, or as many of all."""
    from vllm import SamplingParams

    counts = [steps] * len(specs) if isinstance(steps, int) else steps
    sampling = [
        SamplingParams(
            temperature=0,
            max_tokens=count,
            ignore_eos=True,
            logprobs=0,
            extra_args={KEY: spec.wire()} if spec is not None else None,
        )
        for spec, count in zip(specs, counts, strict=True)
    ]
    return llm.generate([request.for_vllm() for request in requests], sampling, use_tqdm=False)


def compare_with_masked(
    llm: Any, requests: Sequence[Request], specs: Sequence[KvSpec | None], steps: int, oracle: Oracle
) -> list[int]:
    """Compare answers under KV budgets with transformers, the same rows taken out.

    Returns:
        Number of compactions of each request.
    """
    with journal() as kept_rows:
        outputs = evict(llm, requests, specs, steps)
    compactions = []
    for request, spec, output in zip(requests, specs, outputs, strict=True):
        prompt, kept = len(output.prompt_token_ids), kept_rows.of(int(output.request_id))
        evictor = Evictor(prompt, spec.count(prompt), spec.buffer, kept) if spec is not None and kept else None
        compare(answer_of(output), oracle.answer(request, steps, evictor))
        assert evictor is None or evictor.done == len(kept)
        compactions.append(len(kept))
    return compactions


def scheduler_of(llm: Any) -> Any:
    """The scheduler inside an in-process engine."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def free_blocks(llm: Any) -> int:
    """Blocks that the pool could give away now."""
    return int(scheduler_of(llm).kv_cache_manager.block_pool.get_num_free_blocks())
