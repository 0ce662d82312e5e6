"""Moving every row is invisible: caches shuffled per layer and head answer as stock vLLM does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from vllm_prune.budget.kv import KvSpec
from vllm_prune.catalogue import KV
from vllm_prune.kv.suitability import WORKER

from . import media
from .checkpoints import CELL
from .engines import EnginePool, generate
from .eviction import evict, free_blocks, scheduler_of
from .shuffling import Shuffle, ShufflingScheduler

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FAMILY = "qwen2_5_vl"
STEPS = 300


@pytest.fixture(autouse=True)
def shuffle() -> Iterator[None]:
    """The strategy above, in the catalogue."""
    with KV.including(Shuffle):
        yield


@pytest.mark.parametrize("blocks", [None, 52], ids=["ample pool", "preemption"])
def test_shuffled_rows_answer_as_stock(blocks: int | None, engines: EnginePool) -> None:
    cell = CELL[FAMILY]
    shapes = [(4 + i % 5, 3 + i % 7) for i in range(16)]
    requests = [
        media.ask(media.image(h * cell, w * cell, i % 6), *([media.image(4 * cell, 4 * cell, 99)] * (i % 2)))
        for i, (h, w) in enumerate(shapes)
    ]
    options: dict[str, Any] = {"max_num_batched_tokens": 96, "max_model_len": 448}
    stock = [output.outputs[0].token_ids for output in generate(engines.get(FAMILY, **options), requests, STEPS)]
    if blocks is not None:
        options["num_gpu_blocks_override"] = blocks
    llm = engines.get(FAMILY, scheduler_cls=ShufflingScheduler, worker_cls=WORKER, **options)
    scheduler, before = scheduler_of(llm), free_blocks(llm)
    scheduler.preempted = 0
    # Twice: the second time every prompt is in the prefix cache.
    for _ in range(2):
        outputs = evict(llm, requests, [KvSpec("shuffle", keep="0.9", window=1)] * 16, STEPS)
        assert [output.outputs[0].token_ids for output in outputs] == stock
    assert sum(tally.compactions for tally in scheduler.tallies.values()) == 0
    assert free_blocks(llm) == before
    assert bool(scheduler.preempted) == (blocks is not None)
