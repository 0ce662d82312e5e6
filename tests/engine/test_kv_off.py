"""An engine that can evict, without a KV budget: stock vLLM's bits, and in decode steps not one operator more."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_prune.budget.kv import KvSpec

from . import media
from .checkpoints import CELL
from .engines import EnginePool
from .eviction import EVICTING, evict
from .operators import decode_steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FAMILY, STEPS = "qwen2_5_vl", 12
RECORDS = {"vllm_prune::record_norm", "vllm_prune::record_coordinates"}
"""Our operators in the model: in decode steps without a body."""


def exact(logprobs: Any) -> list[str]:
    """`hex` is exact, and equal for equal bits only."""
    return [entry.logprob.hex() for step in logprobs for entry in step.values()]


def answers(llm: Any, specs: list[KvSpec | None]) -> tuple[list[Any], list[list[str]]]:
    """Exact answers to three requests at once, and the operators of the decode steps of all of them."""
    cell = CELL[FAMILY]
    requests = [media.ask(media.image(6 * cell, (7 + seed) * cell, seed)) for seed in range(3)]
    with decode_steps(llm) as steps:
        outputs = evict(llm, requests, specs, STEPS)
    found = [[list(one.outputs[0].token_ids), exact(one.outputs[0].logprobs)] for one in outputs]
    return found, steps


def test_without_a_budget_nothing_is_added(engines: EnginePool) -> None:
    off: list[KvSpec | None] = [None] * 3
    stock, plain = answers(engines.get(FAMILY), off)
    llm = engines.get(FAMILY, **EVICTING)
    ours, steps = answers(llm, off)
    assert stock == ours
    assert len(plain) == len(steps) == STEPS - 1
    for before, after in zip(plain, steps, strict=True):
        assert any("attention" in name for name in before)
        assert [name for name in after if name not in RECORDS] == before
    # A control: the list shows what a budget costs, and what comes after it is free again.
    _, evicting = answers(llm, [KvSpec("random", keep="0.5", buffer=64), None, None])
    assert len(evicting[-1]) > len(steps[-1])
    assert answers(llm, off)[1][-1] == steps[-1]
