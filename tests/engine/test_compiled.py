"""The traced graph, as served without `--enforce-eager`, sees the same positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vllm_prune.catalogue import VISUAL

from . import media
from .by_index import NAME, ByIndex
from .checkpoints import CELL
from .engines import EnginePool, answer_of, generate
from .matrix import STEPS, UNIFORM
from .oracle import Oracle, compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_traced_graph_answers_the_same(
    family: str, engines: EnginePool, oracles: Callable[[str], Oracle], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    cell = CELL[family]
    a, v = media.image(4 * cell, 6 * cell, 1), media.video(8, 4 * cell, 5 * cell, seed=5)
    u = media.video(7, 3 * cell, 4 * cell, 24, 20, 6)
    shown: list[tuple[Any, ...]] = [(a, v), (v, u), (a,)]
    # Unpruned between pruned ones: offsets of an earlier step must not stay behind.
    several = {"strategy": NAME, "keep": 0.4, "options": {"positions": 8}}
    budgets: list[media.Visual] = [{**UNIFORM, "keep": 0.5}, None, {**UNIFORM, "keep": 0.1}, several]
    requests = [media.ask(*items, visual=visual) for items in shown for visual in budgets]
    with VISUAL.including(ByIndex):
        expected = [oracles(family).answer(request, STEPS) for request in requests]
    # The backend "eager" runs what Dynamo traced, without minutes of code generation.
    llm = engines.get(family, enforce_eager=False, compilation_config={"backend": "eager"}, max_num_batched_tokens=96)
    assert llm.llm_engine.vllm_config.compilation_config.mode > 0
    for _ in range(2):
        with VISUAL.including(ByIndex):
            outputs = generate(llm, requests, STEPS)
        for output, want in zip(outputs, expected, strict=True):
            compare(answer_of(output), want)
