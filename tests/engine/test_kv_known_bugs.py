"""Bugs that other evicting systems have had. Those not named here are tested beside what they concern:
shared blocks and cold windows in `test_kv_sharing.py`, blocks never freed in `test_kv_leaks.py`,
per-layer divergence in `test_kv_exact.py`, non-contiguous views in `tests/kv/test_cache.py`.
"""  # fmt: skip

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_prune.budget.kv import KEY, KvSpec
from vllm_prune.kv.runners.v1 import CompactingV1
from vllm_prune.kv.runners.v2 import CompactingV2
from vllm_prune.support import kv

from . import media
from .cache_groups import preemptions, was_compacted
from .checkpoints import CELL
from .engines import EnginePool, answer_of, runner_of
from .eviction import EVICTING, evict, free_blocks, journal, scheduler_of
from .oracle import compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FAMILY = "qwen2_5_vl"
SPEC = KvSpec("snapkv", keep="0.3", buffer=16)


def screens(count: int) -> list[Any]:
    cell = CELL[FAMILY]
    return [
        media.ask(media.image((6 + i % 3) * cell, 8 * cell, i), media.image(5 * cell, 8 * cell, 50 + i))
        for i in range(count)
    ]


def test_every_runner_compacts_and_speculation_on_v2_is_refused_not_bypassed(engines: EnginePool) -> None:
    llm = engines.get(FAMILY, max_num_batched_tokens=64, **EVICTING)
    config = llm.llm_engine.vllm_config
    assert isinstance(runner_of(llm), CompactingV2 if config.use_v2_model_runner else CompactingV1)
    for v2 in (False, True):
        either = SimpleNamespace(**{**vars(config), "use_v2_model_runner": v2})
        assert not kv.config_refusals(either)
        either.speculative_config = SimpleNamespace(method="ngram")
        assert [finding.cause for finding in kv.config_refusals(either)] == ["speculative_v2"] * v2


def test_nothing_is_compacted_while_its_prefill_is_in_chunks(engines: EnginePool) -> None:
    llm = engines.get(FAMILY, max_num_batched_tokens=64, **EVICTING)
    scheduler, rows = scheduler_of(llm), []
    original = scheduler._plan

    def plan() -> Any:
        found = original()
        for planned in found:
            [command], request = planned.commands, scheduler.requests[planned.request_id]
            rows.append((command.rows + command.evicted, request.num_prompt_tokens))
            assert not request.is_prefill_chunk
        return found

    scheduler._plan = plan
    try:
        evict(llm, screens(5), [SPEC] * 5, 30)
    finally:
        scheduler._plan = original
    first = [(rows_then, prompt) for rows_then, prompt in rows if rows_then == prompt]
    assert len(first) == 5
    assert all(rows_then >= prompt for rows_then, prompt in rows)


def test_preempted_requests_forget_what_was_evicted(engines: EnginePool) -> None:
    requests = screens(6)
    llm = engines.get(FAMILY, max_num_batched_tokens=64, max_model_len=416, num_gpu_blocks_override=22, **EVICTING)
    scheduler, before = scheduler_of(llm), free_blocks(llm)
    with journal() as found, preemptions(llm) as victims:
        outputs = evict(llm, requests, [KvSpec("snapkv", keep="0.9", buffer=60)] * 6, 200)
    assert any(victims)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [200] * 6
    assert all((kept >= 0).all() for steps in found.kept.values() for layers in steps for kept in layers)
    assert free_blocks(llm) == before
    assert scheduler.compacting.evicted == {}


def test_uncompacted_requests_are_preempted_first(engines: EnginePool) -> None:
    requests = screens(6)
    llm = engines.get(FAMILY, max_num_batched_tokens=64, max_model_len=416, num_gpu_blocks_override=22, **EVICTING)

    def beside_others(scheduler: Any, request: Any) -> tuple[bool, bool]:
        others = [not was_compacted(scheduler, one) for one in scheduler.running]
        return was_compacted(scheduler, request), any(others)

    with preemptions(llm, beside_others) as victims:
        evict(llm, requests, [SPEC, None] * 3, 150)
    assert victims
    assert not any(compacted and others for compacted, others in victims)


def test_running_ahead_of_the_worker_counts_right(engines: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Async scheduling plans several steps before the first output is back."""
    from vllm import SamplingParams
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.request import Request, RequestStatus

    from vllm_prune.kv.scheduler import CompactingMixin

    llm = engines.get(FAMILY, max_num_batched_tokens=64, **EVICTING)
    own = scheduler_of(llm)
    core = llm.llm_engine.engine_core.engine_core
    kind = type("Async", (CompactingMixin, AsyncScheduler), {})
    scheduler = kind(
        vllm_config=core.vllm_config,
        kv_cache_config=own.kv_cache_config,
        structured_output_manager=core.structured_output_manager,
        block_size=own.block_size,
        hash_block_size=own.hash_block_size,
    )
    pool = scheduler.compacting.block_pool
    free = pool.get_num_free_blocks()
    spec = KvSpec("snapkv", max_tokens=40, buffer=3)
    params = SamplingParams(max_tokens=50, extra_args={KEY: spec.wire()})
    request = Request("a", list(range(3, 153)), params, None, block_hasher=core.request_block_hasher)
    scheduler.add_request(request)
    commands, lengths, planned = [], [], []

    def preempt() -> None:
        commands = (command for one in scheduler.planned for command in one.commands)
        planned.extend((command.rows, command.keep, command.evicted) for command in commands)
        scheduler.running.remove(request)
        scheduler._preempt_request(request, 0.0)

    for _ in range(12):
        output = scheduler.schedule()
        commands.append([(c.rows, c.keep, c.evicted) for c in getattr(output, "compactions", [])])
        lengths.append(request.num_computed_tokens - scheduler.compacting.evicted.get("a", 0))
        held = len(scheduler.compacting.compacting[0].req_to_blocks["a"]) * own.block_size
        assert 0 <= held - lengths[-1] < own.block_size
    # Three chunks; the fourth step carries the first command; then one after every fourth decoded token.
    assert commands == [[], [], [], [(150, 40, 0)], [], [], [], [(44, 40, 110)], [], [], [], [(44, 40, 114)]]
    assert lengths == [64, 128, 150, 41, 42, 43, 44, 41, 42, 43, 44, 41]
    # Chosen as a victim in the very step that would compact it: nothing is ordered, and nothing counted.
    for _ in range(3):
        assert not hasattr(scheduler.schedule(), "compactions")
    tally, spare = scheduler.tallies["a"].compactions, scheduler._spare_compacted
    monkeypatch.setattr(scheduler, "_spare_compacted", lambda: spare() or preempt())
    assert not hasattr(scheduler.schedule(), "compactions")
    assert planned == [(44, 40, 118)]
    assert scheduler.tallies["a"].compactions == tally == 3
    assert scheduler.compacting.evicted == {}
    scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    assert pool.get_num_free_blocks() == free
    assert scheduler.compacting.evicted == {}


def test_mixed_batches_observe_every_request(engines: EnginePool) -> None:
    """Answers under eviction do not depend on what else is in the batch."""
    requests = screens(4)
    specs: list[KvSpec | None] = [SPEC, None, KvSpec("r_kv", keep="0.2", buffer=9), KvSpec("keydiff", max_tokens=30)]
    llm = engines.get(FAMILY, max_num_batched_tokens=64, **EVICTING)
    alone = [answer_of(evict(llm, [one], [spec], 50)[0]) for one, spec in zip(requests, specs, strict=True)]
    assert llm.reset_prefix_cache()
    for output, want in zip(evict(llm, requests, specs, 50), alone, strict=True):
        compare(answer_of(output), want)
    store = runner_of(llm).kv_store
    assert not store.armed
    assert (store.target == store.capacity).all()
