"""`resize` answers as the same model does to pictures that were drawn smaller before they were sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vllm_prune.budget.errors import BudgetError
from vllm_prune.grid import Grid
from vllm_prune.visual.frontend.resizing import drawn

from . import media
from .checkpoints import CELL
from .engines import EnginePool, answer_of, generate, model_of
from .media import Request, Video, Visual
from .oracle import TOLERANCE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 6
HALF: Visual = {"strategy": "resize", "keep": 0.5}


@contextmanager
def encoded(llm: Any) -> Iterator[list[int]]:
    """Patches in every call of the vision tower."""
    patches: list[int] = []
    handle = model_of(llm).visual.register_forward_pre_hook(
        lambda module, args, kwargs: patches.append(sum(math.prod(map(int, thw)) for thw in kwargs["grid_thw"])),
        with_kwargs=True,
    )
    try:
        yield patches
    finally:
        handle.remove()


@pytest.fixture
def shown(family: str) -> tuple[Image.Image, Video, Image.Image]:
    """6 x 9 visual tokens, 4 frames of 4 x 5, and 5 x 4 of an odd size."""
    cell = CELL[family]
    v = media.video(8, 4 * cell, 5 * cell, seed=5)
    return media.image(6 * cell, 9 * cell, 1), v, media.image(5 * cell - 9, 4 * cell + 3, 2)


def smaller(family: str, items: tuple[Image.Image, Video, Image.Image]) -> Request:
    """What `HALF` makes of them: of 54, 20 a frame and 20 at most 27, 10 and 10, so 4 x 6, 2 x 3 and 3 x 3 or so."""
    cell, (a, (frames, metadata), b) = CELL[family], items
    film = np.stack([np.asarray(drawn(frame, 3 * cell, 3 * cell)) for frame in frames]), metadata
    return media.ask(drawn(a, 4 * cell, 6 * cell), film, drawn(b, 3 * cell, 3 * cell))


def test_as_if_sent_smaller(family: str, engines: EnginePool, shown: Any) -> None:
    llm = engines.get(family)
    with encoded(llm) as patches:
        (wanted,) = generate(llm, [smaller(family, shown)], STEPS)
        sent_small = sum(patches)
    llm = engines.get(family)
    other = media.ask(media.image(4 * CELL[family], 6 * CELL[family], 7), visual={"strategy": "divprune", "keep": 0.3})
    with encoded(llm) as patches:
        cold, _ = generate(llm, [media.ask(*shown, visual=HALF), other], STEPS)
        # The tower ran on the small pictures, and on all of the other request's one.
        assert sum(patches) == sent_small + 4 * 24
        before = len(patches)
        (warm,) = generate(llm, [media.ask(*shown, visual=HALF)], STEPS)
        assert len(patches) == before
    for output in (cold, warm):
        answer, expected = answer_of(output), answer_of(wanted)
        assert answer.prompt == expected.prompt
        assert answer.tokens == expected.tokens
        assert max(abs(a - b) for a, b in zip(answer.logprobs, expected.logprobs, strict=True)) < TOLERANCE


def test_budgets_and_pictures_are_told_apart(family: str, engines: EnginePool, shown: Any) -> None:
    """Neither another budget nor the picture itself is answered from the cache of a smaller one; none drawn twice."""
    llm = engines.get(family)
    visuals: list[Visual] = [HALF, None, {**HALF, "keep": 0.4}, {"strategy": "uniform", "keep": 0.5}, HALF]  # type: ignore[dict-item]
    with encoded(llm) as patches:
        lengths = []
        for visual in visuals:
            before = len(patches)
            (output,) = generate(llm, [media.ask(shown[0], visual=visual)], 1)
            lengths.append((len(output.prompt_token_ids), sum(patches[before:])))
    text = lengths[1][0] - 54
    assert [(length - text, count) for length, count in lengths] == [(24, 96), (54, 216), (20, 80), (27, 216), (24, 0)]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen2_vl"])
def test_what_is_reported(name: str, reported: Callable[..., list[dict[str, Any]]]) -> None:
    cell = CELL.get(name, 28)
    a, b, v = media.image(6 * cell, 9 * cell, 1), media.image(2 * cell, 2 * cell, 2), media.video(6, 4 * cell, 5 * cell)
    found = reported(name, (a, v, b), {"strategy": "resize", "keep": 0.25, "video": {"keep": 0.05}})
    assert [(item["input_tokens"], item["kept_tokens"], item["grid"]) for item in found] == [
        # One visual token is less than the processor makes of any picture by itself.
        (54, 12, Grid(1, 3, 4)), (60, 3, Grid(3, 1, 1)), (4, 1, Grid(1, 1, 1)),
    ]  # fmt: skip
    shared = reported(name, (a, v, b), {"strategy": "resize", "max_tokens": 116})
    # Shares of 116 by size are 53, 59 and 4: the last item keeps all it has, and is not drawn again.
    assert [(item["strategy"], item["kept_tokens"], item["grid"]) for item in shared] == [
        ("resize", 48, Grid(1, 6, 8)), ("resize", 48, Grid(3, 4, 4)), ("none", 4, Grid(1, 2, 2)),
    ]  # fmt: skip


def test_what_cannot_be_drawn_smaller_is_refused(reported: Callable[..., list[dict[str, Any]]]) -> None:
    cell = CELL["qwen2_5_vl"]
    film = media.video(6, 3 * cell, 4 * cell)
    with pytest.raises(BudgetError, match="2 visual tokens are fewer than the 3 frames") as refusal:
        reported("qwen2_5_vl", (film,), {"strategy": "resize", "max_tokens": 2})
    assert refusal.value.param == "pruning.visual.keep"
    with pytest.raises(BudgetError, match="pictures of any size"):
        reported("glm4v", (media.image(84, 84),), HALF)
