"""STTS as served answers as transformers does with the bias written into the logits and no cell ever dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from . import media
from .checkpoints import CELL, random_scorer
from .engines import EnginePool, answer_of, compare_all, generate, model_of
from .media import Request, Visual
from .oracle import compare
from .scoring import SttsOracle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 8


def stts(keep: float, **options: Any) -> dict[str, Any]:
    return {"strategy": "stts", "keep": keep, "options": options}


def requests(family: str) -> dict[str, Request]:
    """Images of several windows, odd sizes, videos, and mixes, at several budgets."""
    cell = CELL[family]
    a, b = media.image(6 * cell, 9 * cell, 1), media.image(5 * cell - 9, 4 * cell + 3, 2)
    v, u = media.video(8, 4 * cell, 5 * cell, seed=5), media.video(7, 3 * cell, 4 * cell, 24, 20, 6)
    return {
        "images": media.ask(a, b, visual=stts(0.4)),
        "a video with its first frame": media.ask(v, visual=stts(0.6, spread="free")),
        "a video without": media.ask(v, visual=stts(0.3, spread="free")),
        "the paper's rule": media.ask(v, visual=stts(0.3, spread="free", whole=1.0)),
        "even frames": media.ask(v, visual=stts(0.3)),
        "mixed": media.ask(a, u, b, visual=stts(0.5)),
        "shared": media.ask(a, b, v, visual={"strategy": "stts", "max_tokens": 50}),
        "one cell": media.ask(b, u, visual=stts(0.01)),
    }


@contextmanager
def served(llm: Any, scorer: Any) -> Iterator[None]:
    """Another scorer in a running engine, and dense blocks frame by frame."""
    model = model_of(llm)
    before, model._scorer.scorer, model.least_group = model._scorer.scorer, scorer, 0
    try:
        yield
    finally:
        model._scorer.scorer = before
        del model.least_group


@pytest.mark.parametrize(
    ("after", "change"), [(0, {}), (1, {"rescale": "video", "refill": "ffd"}), (2, {"rescale": "frame"})]
)
def test_scores_bias_and_cut(
    family: str, after: int, change: dict[str, Any], engines: EnginePool, checkpoints: dict[str, Path]
) -> None:
    scorer, llm = random_scorer(family, after), engines.get(family, max_num_batched_tokens=96)
    scorer.shape = replace(scorer.shape, **change)
    # A copy: the engine moves its own to where the tower is.
    oracle, asked = SttsOracle(checkpoints[family], deepcopy(scorer)), requests(family)
    with served(llm, scorer):
        outputs, again = (generate(llm, list(asked.values()), STEPS) for _ in range(2))
    compare_all(asked, outputs, again, lambda request: oracle.answer(request, STEPS))


def test_the_bias_matters(family: str, engines: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: the comparison above would notice a missing bias."""
    cell, llm = CELL[family], engines.get(family, max_num_batched_tokens=96)
    request = media.ask(media.image(6 * cell, 9 * cell, 1), visual=stts(0.4))
    [with_bias] = generate(llm, [request], STEPS)
    llm.llm_engine.reset_encoder_cache()
    assert llm.reset_prefix_cache()
    monkeypatch.setattr("vllm_prune.visual.tower.scored_cut.key_bias", lambda scores, *_: torch.zeros_like(scores))
    [without] = generate(llm, [request], STEPS)
    pairs = zip(answer_of(with_bias).logprobs, answer_of(without).logprobs, strict=True)
    assert max(abs(one - other) for one, other in pairs) > 1e-3


def test_a_batch_of_many_budgets(family: str, engines: EnginePool, checkpoints: dict[str, Path]) -> None:
    cell, llm = CELL[family], engines.get(family, max_num_batched_tokens=96)
    oracle = SttsOracle(checkpoints[family], random_scorer(family, 1))
    budgets: list[Visual] = [stts(0.5), None, stts(0.2), stts(0.8)]
    asked = [media.ask(media.image(6 * cell, 7 * cell, n), visual=budget) for n, budget in enumerate(budgets)]
    for request, output in zip(asked, generate(llm, asked, STEPS), strict=True):
        compare(answer_of(output), oracle.answer(request, STEPS))


def test_keeping_all_is_stock(family: str, engines: EnginePool) -> None:
    """K = all runs without the bias: the very bits of a request that asks for nothing."""
    cell, llm = CELL[family], engines.get(family, max_num_batched_tokens=96)
    items = media.image(6 * cell, 7 * cell, 3), media.video(8, 4 * cell, 5 * cell, seed=5)
    found = []
    for visual in (None, stts(1.0), {"strategy": "stts", "max_tokens": 1000}):
        llm.llm_engine.reset_encoder_cache()
        assert llm.reset_prefix_cache()
        found.append(answer_of(generate(llm, [media.ask(*items, visual=visual)], STEPS)[0]))
    assert found[0] == found[1] == found[2]
