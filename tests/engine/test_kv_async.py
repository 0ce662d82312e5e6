"""Scheduling a step ahead, as vLLM does on CUDA: the worker compacts before the scheduler has seen the last answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vllm_prune.budget.kv import KvSpec
from vllm_prune.catalogue import KV
from vllm_prune.kv.suitability import WORKER

from ..runner_v2 import asynchronous_scheduling
from . import media
from .checkpoints import CELL
from .engines import EnginePool, generate
from .eviction import EVICTING, compare_with_masked, evict, free_blocks, scheduler_of
from .oracle import Oracle
from .shuffling import AsyncShufflingScheduler, Shuffle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.runner("v2", "vLLM's V1 runner for CPUs has no asynchronous output"),
]
FAMILY = "qwen2_5_vl"
OPTIONS: dict[str, Any] = {"max_num_batched_tokens": 96, "async_scheduling": True}


@pytest.fixture(autouse=True)
def ahead() -> Iterator[None]:
    """Engines of this file schedule a step ahead."""
    with asynchronous_scheduling():
        yield


def requests(count: int) -> list[media.Request]:
    cell = CELL[FAMILY]
    return [media.ask(media.image((4 + i % 3) * cell, (5 + i % 4) * cell, i)) for i in range(count)]


def runs_ahead(llm: Any) -> bool:
    """Whether the engine hands a step to the worker before it has the answer of the step before."""
    return llm.llm_engine.engine_core.engine_core.batch_queue is not None


def test_answers_are_those_of_the_masked_reference(
    engines: EnginePool, oracles: Callable[[str], Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engines.get(FAMILY, **OPTIONS, **EVICTING)
    scheduler, before, pending = scheduler_of(llm), free_blocks(llm), []
    plan = scheduler._plan

    def watched() -> Any:
        plans = plan()
        pending.extend(scheduler.requests[one.request_id].num_output_placeholders for one in plans)
        return plans

    monkeypatch.setattr(scheduler, "_plan", watched)
    specs = [KvSpec("snapkv", keep="0.3", buffer=9), None, KvSpec("random", max_tokens=20, buffer=6)]
    counts = compare_with_masked(llm, requests(3), specs, 40, oracles(FAMILY))
    assert counts[0] > 1
    assert counts[1] == 0
    assert counts[2] > 3
    assert runs_ahead(llm)
    assert len(pending) == sum(counts)
    assert sum(outputs > 0 for outputs in pending) > 3
    assert free_blocks(llm) == before


def test_preempted_requests_are_compacted_anew(engines: EnginePool) -> None:
    asked, steps = requests(6), 90
    stock = [output.outputs[0].token_ids for output in generate(engines.get(FAMILY, **OPTIONS), asked, steps)]
    tight = {**OPTIONS, "num_gpu_blocks_override": 20, "max_model_len": 256}
    llm = engines.get(FAMILY, scheduler_cls=AsyncShufflingScheduler, worker_cls=WORKER, **tight)
    scheduler, before = scheduler_of(llm), free_blocks(llm)
    with KV.including(Shuffle):
        outputs = evict(llm, asked, [KvSpec("shuffle", keep="0.9", window=1)] * len(asked), steps)
    assert [output.outputs[0].token_ids for output in outputs] == stock
    assert runs_ahead(llm)
    assert scheduler.preempted > 0
    assert scheduler.ahead > 0
    assert free_blocks(llm) == before
