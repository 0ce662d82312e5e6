"""Moving every row is invisible: caches shuffled per layer and head answer as stock vLLM does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from vllm_prune.budget.kv import KvSpec
from vllm_prune.catalogue import KV
from vllm_prune.kv.suitability import WORKER

from .. import runner_v2
from . import media
from .checkpoints import CELL
from .engines import EnginePool, generate
from .eviction import evict, free_blocks, scheduler_of
from .shuffling import EVERY, Shuffle, ShufflingScheduler

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FAMILY = "qwen2_5_vl"
REQUESTS, STEPS, TIGHT = (6, 100, 18) if runner_v2.is_on() else (16, 300, 52)
"""Requests, tokens of each answer, and blocks of a pool that is too small for them. Fewer on V2, whose kernels Triton's
interpreter runs; the answers are compared as strictly."""
SHUFFLES = STEPS // EVERY
"""Least shuffles of a request's rows in one answer."""
OPTIONS: dict[str, Any] = {"max_num_batched_tokens": 96, "max_model_len": 148 + STEPS}


@pytest.fixture(autouse=True)
def shuffle() -> Iterator[None]:
    """The strategy above, in the catalogue."""
    with KV.including(Shuffle):
        yield


def requests() -> list[media.Request]:
    """One or two pictures of many sizes."""
    cell = CELL[FAMILY]
    shapes = [(4 + i % 5, 3 + i % 7) for i in range(REQUESTS)]
    return [
        media.ask(media.image(h * cell, w * cell, i % 6), *([media.image(4 * cell, 4 * cell, 99)] * (i % 2)))
        for i, (h, w) in enumerate(shapes)
    ]


@pytest.fixture(scope="module")
def stock(engines: EnginePool) -> list[Any]:
    """What stock vLLM answers."""
    outputs = generate(engines.get(FAMILY, **OPTIONS), requests(), STEPS)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("blocks", [None, TIGHT], ids=["ample pool", "preemption"])
def test_shuffled_rows_answer_as_stock(blocks: int | None, stock: list[Any], engines: EnginePool) -> None:
    tight: dict[str, Any] = {} if blocks is None else {"num_gpu_blocks_override": blocks}
    llm = engines.get(FAMILY, scheduler_cls=ShufflingScheduler, worker_cls=WORKER, **OPTIONS, **tight)
    scheduler, before = scheduler_of(llm), free_blocks(llm)
    scheduler.preempted = scheduler.ordered = 0
    # Twice: the second time every prompt is in the prefix cache.
    for _ in range(2):
        outputs = evict(llm, requests(), [KvSpec("shuffle", keep="0.9", window=1)] * REQUESTS, STEPS)
        assert [output.outputs[0].token_ids for output in outputs] == stock
    assert scheduler.ordered >= 2 * REQUESTS * SHUFFLES
    assert sum(tally.compactions for tally in scheduler.tallies.values()) == 0
    assert free_blocks(llm) == before
    assert bool(scheduler.preempted) == (blocks is not None)
