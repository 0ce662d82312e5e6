"""A request's answer does not depend on what it is batched with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from . import media
from .checkpoints import CELL
from .engines import EnginePool, answer_of, generate, reset
from .matrix import STEPS, UNIFORM
from .media import Request
from .oracle import TOLERANCE, Oracle, compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def mixed(family: str) -> list[Request]:
    """16 requests of four shapes; no two have equal media and budget."""
    cell = CELL[family]
    a, b = media.image(4 * cell, 6 * cell, 1), media.image(5 * cell, 4 * cell, 2)
    v = media.video(8, 4 * cell, 5 * cell, seed=5)
    shown: list[tuple[Any, ...]] = [(a,), (v,), (b, v), (a, b)]
    keeps = (None, 0.75, 0.5, 0.2)
    return [
        media.ask(*items, visual=keep and {**UNIFORM, "keep": keep}, question=f"q{i}?")
        for i, keep in enumerate(keeps)
        for items in shown
    ]


def test_together_as_alone(family: str, engines: EnginePool, oracles: Callable[[str], Oracle]) -> None:
    llm, requests = engines.get(family), mixed(family)
    assert len(requests) == 16
    together = [answer_of(output) for output in generate(llm, requests, STEPS)]
    for request, batched in zip(requests, together, strict=True):
        reset(llm)
        alone = answer_of(generate(llm, [request], STEPS)[0])
        assert alone.prompt == batched.prompt
        assert alone.tokens == batched.tokens
        assert max(abs(a - b) for a, b in zip(alone.logprobs, batched.logprobs, strict=True)) < TOLERANCE
        compare(batched, oracles(family).answer(request, STEPS))


def test_seeded_choice_depends_on_content_alone(family: str, engines: EnginePool) -> None:
    cell, llm = CELL[family], engines.get(family)
    image, others = media.image(4 * cell, 6 * cell, 1), mixed(family)[4:8]
    request = media.ask(image, visual={"strategy": "random", "keep": 0.5})
    alone = answer_of(generate(llm, [request], STEPS)[0])
    reset(llm)
    batched = answer_of(generate(llm, [*others, request], STEPS)[-1])
    assert batched.tokens == alone.tokens
    assert max(abs(a - b) for a, b in zip(alone.logprobs, batched.logprobs, strict=True)) < TOLERANCE
