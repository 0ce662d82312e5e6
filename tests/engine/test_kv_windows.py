"""Long windows: a fixed store, requests that wait for room in it, and answers that do not depend on it."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.v1.worker.worker_base import WorkerBase

from vllm_prune.budget.kv import KEY, KvSpec
from vllm_prune.kv.worker import PlatformWorker

from .engines import EnginePool, answer_of, runner_of
from .eviction import EVICTING, evict, free_blocks, scheduler_of
from .oracle import compare
from .test_kv_known_bugs import FAMILY, screens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LONG = KvSpec("snapkv", max_tokens=80, window=1024, buffer=16)


def test_the_store_is_there_before_the_cache_is_sized(engines: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    reserved: list[int] = []
    original = PlatformWorker.determine_available_memory

    def determine(self: WorkerBase) -> int:
        reserved.append(sum(rows.numel() for rows in self.model_runner.kv_store.rows))
        return original(self)

    monkeypatch.setattr(PlatformWorker, "determine_available_memory", determine)
    llm = engines.get(FAMILY, max_num_batched_tokens=64, max_num_seqs=5, **EVICTING)
    config = llm.llm_engine.model_config.hf_text_config
    row = config.hidden_size * config.num_hidden_layers
    # A longest window, and a row for tokens that are not observed.
    assert reserved == [65 * row]
    assert runner_of(llm).kv_compactor.store is runner_of(llm).kv_store


def test_windows_wait_for_room_and_answer_as_alone(engines: EnginePool) -> None:
    """Sixteen sequences have 128 slots, so two windows of 64 run at once; the store does not grow."""
    requests = screens(7)
    llm = engines.get(FAMILY, max_num_batched_tokens=64, **EVICTING)
    specs: list[KvSpec | None] = [LONG, LONG, None, LONG, KvSpec("keydiff", max_tokens=30), LONG, LONG]
    alone = [answer_of(evict(llm, [one], [spec], 40)[0]) for one, spec in zip(requests, specs, strict=True)]
    assert llm.reset_prefix_cache()
    scheduler, store, before = scheduler_of(llm), runner_of(llm).kv_store, free_blocks(llm)
    memory = [(rows.data_ptr(), len(rows)) for rows in store.rows]
    at_once: list[dict[str, int]] = []
    original = scheduler.schedule

    def schedule(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        at_once.append(dict(scheduler.windows.held))
        return output

    scheduler.schedule = schedule
    try:
        outputs = evict(llm, requests, specs, 40)
    finally:
        scheduler.schedule = original
    for output, want in zip(outputs, alone, strict=True):
        compare(answer_of(output), want)
    assert max(len(held) for held in at_once) == 2
    assert {size for held in at_once for size in held.values()} == {64}
    assert [(rows.data_ptr(), len(rows)) for rows in store.rows] == memory
    assert {size for _, size in memory} == {129}
    assert scheduler.windows.free == 128
    assert free_blocks(llm) == before


def test_a_waiting_window_can_be_aborted(engines: EnginePool) -> None:
    from vllm import SamplingParams

    llm = engines.get(FAMILY, max_num_batched_tokens=64, **EVICTING)
    engine, scheduler = llm.llm_engine, scheduler_of(llm)
    for name in "abcd":
        params = SamplingParams(max_tokens=30, ignore_eos=True, extra_args={KEY: LONG.wire()})
        engine.add_request(name, {"prompt_token_ids": list(range(3, 150))}, params)
    # Three chunks each.
    for _ in range(7):
        engine.step()
    assert len(scheduler.windows.held) == 2
    assert engine.get_num_unfinished_requests() == 4
    engine.abort_request(["d", "a"])
    ended = []
    while engine.has_unfinished_requests():
        ended += [output.request_id for output in engine.step() if output.finished]
    assert sorted(ended) == ["b", "c"]
    assert scheduler.windows.held == scheduler.windows.needed == scheduler.tallies == {}
    engine.step()
    assert sorted(runner_of(llm).kv_store.free) == list(range(128))
