"""A pool too small for the batch: preempted requests are prefilled again and answer the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vllm_prune.catalogue import VISUAL

from . import media
from .by_index import NAME, ByIndex
from .checkpoints import CELL
from .engines import EnginePool, answer_of, generate
from .matrix import UNIFORM
from .media import Visual
from .oracle import Oracle, compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 60
SEVERAL: Visual = {"strategy": NAME, "max_tokens": 12, "options": {"positions": 8}}
BUDGETS: list[Visual] = [{**UNIFORM, "keep": 0.5}, SEVERAL, None]


@pytest.mark.parametrize("caching", [False, True], ids=["no prefix cache", "prefix cache"])
def test_preempted_requests_answer_the_same(
    family: str, caching: bool, engines: EnginePool, oracles: Callable[[str], Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    cell, oracle = CELL[family], oracles(family)
    a, v = media.image(4 * cell, 6 * cell, 1), media.video(8, 4 * cell, 5 * cell, seed=5)
    u = media.video(6, 3 * cell, 4 * cell, 24, 20, 6)
    shown: list[tuple[Any, ...]] = [(a, v), (u, a), (v,)]
    requests = [media.ask(*items, visual=visual) for items in shown for visual in BUDGETS]
    with VISUAL.including(ByIndex):
        expected = [oracle.answer(request, STEPS) for request in requests]
    llm = engines.get(
        family,
        max_num_batched_tokens=64,
        kv_cache_memory_bytes=int(1.6 * 2**20),
        max_model_len=416,
        enable_prefix_caching=caching,
    )
    preempted: list[str] = []
    original = Scheduler._preempt_request

    def count(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(request.request_id)
        return original(self, request, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "_preempt_request", count)
    with VISUAL.including(ByIndex):
        outputs = generate(llm, requests, STEPS)
    for output, want in zip(outputs, expected, strict=True):
        compare(answer_of(output), want)
    assert preempted
