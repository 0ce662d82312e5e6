"""Equal budgets share cache entries, different ones never do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from . import media
from .checkpoints import CELL
from .engines import DEFAULTS, EnginePool, answer_of, generate, model_of, reset
from .matrix import STEPS, UNIFORM, strategy_budget
from .media import Request, Visual
from .oracle import Answer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HALF: Visual = {**UNIFORM, "keep": 0.5}
BLOCK = DEFAULTS["block_size"]


@contextmanager
def counting(llm: Any) -> Iterator[list[int]]:
    """Number of items in every call of the vision tower."""
    calls: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        calls.append(len(kwargs["grid_thw"]))

    handle = model_of(llm).visual.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def shown(family: str, visual: Visual, kind: str = "image", lead: str = "") -> Request:
    """One item after `lead` characters, which are one token each."""
    cell = CELL[family]
    image, video = media.image(6 * cell, 7 * cell, 1), media.video(8, 4 * cell, 5 * cell, seed=5)
    request = media.ask(image if kind == "image" else video, visual=visual, question="what is it? " * 3)
    return Request(request.prompt.replace("m0", lead + "m0"), request.images, request.videos, request.visual)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_budgets_one_after_the_other_answer_as_if_alone(family: str, engines: EnginePool, kind: str) -> None:
    llm = engines.get(family)
    budgets: list[Visual] = [HALF, None, {**UNIFORM, "keep": 0.4}, {**UNIFORM, "max_tokens": 9}, HALF]
    warm = [answer_of(generate(llm, [shown(family, visual, kind)], STEPS)[0]) for visual in budgets]
    for visual, answer in zip(budgets, warm, strict=True):
        reset(llm)
        cold = answer_of(generate(llm, [shown(family, visual, kind)], STEPS)[0])
        assert cold.prompt == answer.prompt
        assert cold.tokens == answer.tokens
        assert max(abs(a - b) for a, b in zip(cold.logprobs, answer.logprobs, strict=True)) < 1e-4


@pytest.mark.parametrize("kind", ["image", "video"])
def test_equal_budgets_share(family: str, engines: EnginePool, kind: str) -> None:
    llm = engines.get(family)
    first = generate(llm, [shown(family, HALF, kind)], 1)[0]
    assert first.num_cached_tokens == 0
    # The same budget in other words: an override per modality, options spelled out, an integer-like ratio.
    same: list[Visual] = [HALF, {kind: HALF}, {**UNIFORM, "keep": 0.50, "options": {}}]
    for visual in same:
        with counting(llm) as calls:
            again = generate(llm, [shown(family, visual, kind)], 1)[0]
        assert calls == []
        assert again.num_cached_tokens >= (len(first.prompt_token_ids) - 1) // BLOCK * BLOCK > 0


def test_a_place_left_open_is_inside_the_tower(family: str, engines: EnginePool) -> None:
    """To the last bit, and out of the same cache entries."""
    llm = engines.get(family)

    def at(where: str, **more: Any) -> Visual:
        return {"strategy": "divprune", "keep": 0.5, "options": {"where": where, **more}}

    def exact(visual: Visual) -> Answer:
        return answer_of(generate(llm, [shown(family, visual, "video")], STEPS)[0])

    behind, inside = exact(at("embed")), exact(at("tower"))
    assert inside.logprobs != behind.logprobs
    # A video's default is left open.
    for left_open in (at("auto"), {"keep": 0.5}):
        with counting(llm) as calls:
            assert exact(left_open).tokens == inside.tokens
        assert calls == []
        reset(llm)
        assert exact(left_open) == inside
    # With no block left behind the cut it is the choice behind the tower.
    reset(llm)
    assert exact(at("auto", after=128)) == behind


def test_encoder_outputs_are_shared_across_prompts(family: str, engines: EnginePool) -> None:
    llm = engines.get(family)
    generate(llm, [shown(family, HALF)], 1)
    with counting(llm) as calls:
        other = generate(llm, [shown(family, HALF, lead="another beginning ")], 1)[0]
    assert other.num_cached_tokens == 0
    assert calls == []
    with counting(llm) as calls:
        generate(llm, [shown(family, {**UNIFORM, "keep": 0.51}, lead="another beginning ")], 1)
    assert calls == [1]


@pytest.mark.parametrize(
    "other",
    [None, {**UNIFORM, "keep": 0.49}, {**UNIFORM, "max_tokens": 21}, {**UNIFORM, "keep": 0.01}],
    ids=["none", "ratio", "count", "one token"],
)
def test_different_budgets_share_only_the_text_before(family: str, engines: EnginePool, other: Visual) -> None:
    llm, lead = engines.get(family), "look at this picture carefully, and then say: "
    first = generate(llm, [shown(family, HALF, lead=lead)], 1)[0]
    pad = model_of(llm).config.image_token_id
    text = list(first.prompt_token_ids).index(pad)
    with counting(llm) as calls:
        second = generate(llm, [shown(family, other, lead=lead)], 1)[0]
    assert calls == [1]
    assert second.num_cached_tokens == text // BLOCK * BLOCK > 0


def test_equal_counts_by_another_strategy_do_not_share(family: str, engines: EnginePool) -> None:
    llm = engines.get(family)
    generate(llm, [shown(family, {**UNIFORM, "keep": 0.3})], 1)
    with counting(llm) as calls:
        other = generate(llm, [shown(family, strategy_budget("divprune"))], 1)[0]
    assert calls == [1]
    assert other.num_cached_tokens == 0


def test_keeping_everything_shares_with_no_budget(family: str, engines: EnginePool) -> None:
    llm = engines.get(family)
    first = generate(llm, [shown(family, None)], 1)[0]
    for visual in ({**UNIFORM, "keep": 1.0}, {**UNIFORM, "max_tokens": 10_000}):
        again = generate(llm, [shown(family, visual)], 1)[0]
        assert again.num_cached_tokens >= (len(first.prompt_token_ids) - 1) // BLOCK * BLOCK > 0
