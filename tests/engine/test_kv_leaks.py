"""Whatever requests do, the pool ends as it began."""

from __future__ import annotations

import random
from typing import Any

import pytest

from vllm_prune.budget.kv import KEY, KvSpec
from vllm_prune.catalogue import KV

from .engines import EnginePool
from .eviction import EVICTING, free_blocks, scheduler_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def parameters(rng: random.Random) -> Any:
    """Random sampling parameters, three of four with a KV budget."""
    from vllm import SamplingParams

    spec = None
    if rng.random() < 0.75:
        budget: dict[str, Any] = (
            {"keep": rng.choice(["0.05", "0.3", "0.9"])}
            if rng.random() < 0.5
            else {"max_tokens": rng.randrange(1, 120)}
        )
        spec = KvSpec(rng.choice(["random", "streaming", "snapkv"]), **budget, window=rng.choice([1, 8, 20]),
                      buffer=rng.choice([1, 7, 40]))  # fmt: skip
    return SamplingParams(
        temperature=1.0,
        max_tokens=rng.randrange(1, 40),
        n=rng.choice([1, 1, 1, 2]),
        stop=rng.choice([None, ["a"], ["e", "the"]]),
        ignore_eos=rng.random() < 0.5,
        extra_args={KEY: spec.wire()} if spec is not None else None,
    )


SHORT = pytest.mark.runner("v2", "2000 requests run on V1")
LONG = pytest.mark.runner("v1", "Triton's interpreter takes most of an hour for 2000 requests; 200 run on V2, too")


@pytest.mark.parametrize(
    ("count", "blocks"),
    [pytest.param(200, 40, id="200", marks=SHORT), pytest.param(2000, 60, id="2000", marks=LONG)],
)
def test_requests_leave_nothing_behind(count: int, blocks: int, engines: EnginePool) -> None:
    assert {"random", "streaming", "snapkv"} <= set(KV.names())
    rng = random.Random(11)
    llm = engines.get(
        "qwen2_5_vl", max_num_batched_tokens=256, max_model_len=416, num_gpu_blocks_override=blocks, **EVICTING
    )
    engine, scheduler, before = llm.llm_engine, scheduler_of(llm), free_blocks(llm)
    compactor = engine.model_executor.driver_worker.worker.model_runner
    live: list[str] = []
    started = finished = aborted = preempted = private = 0
    original = scheduler._preempt_request

    def preempt(*args: Any, **kwargs: Any) -> Any:
        nonlocal preempted
        preempted += 1
        return original(*args, **kwargs)

    scheduler._preempt_request = preempt
    [compacting] = scheduler.compacting.compacting.values()
    shared = [rng.randrange(3, 250) for _ in range(200)]
    while started < count or engine.has_unfinished_requests():
        while started < count and len(live) < 24:
            prompt = shared[: rng.choice([0, 64, 160])] + [rng.randrange(3, 250) for _ in range(rng.randrange(1, 150))]
            live.append(f"r{started}")
            engine.add_request(live[-1], {"prompt_token_ids": prompt}, parameters(rng))
            started += 1
        if live and rng.random() < 0.02:
            victim = live.pop(rng.randrange(len(live)))
            engine.abort_request([victim])
            aborted += 1
        done = [output.request_id for output in engine.step() if output.finished]
        finished += len(done)
        # Rows that are left, and those that follow, are no text that a prefix could match.
        held = [block for name in compacting.evicted for block in compacting.req_to_blocks[name]]
        assert all(block.block_hash is None for block in held)
        private += len(held)
        live = [name for name in live if name not in done]
    assert finished + aborted >= count
    assert aborted > count // 100
    assert preempted > 0
    assert private > count
    assert free_blocks(llm) == before
    assert scheduler.compacting.evicted == {}
    assert scheduler.budgets == {}
    assert scheduler.tallies == {}
    assert scheduler.windows.held == scheduler.windows.needed == {}
    assert scheduler.windows.free == scheduler.windows.limits.slots
    engine.step()
    assert sorted(compactor.kv_compactor.store.free) == list(range(compactor.kv_compactor.store.capacity))
