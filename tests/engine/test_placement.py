"""Prompts whose media stand in awkward places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from . import media
from .checkpoints import CELL
from .engines import EnginePool, answer_of, generate
from .matrix import STEPS, UNIFORM
from .media import IMAGE, VIDEO, Request
from .oracle import Oracle, compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PAD = "<|image_pad|>"
START, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def prompts(family: str) -> dict[str, Request]:
    """Requests by what is awkward about them."""
    cell = CELL[family]
    a, b = media.image(4 * cell, 6 * cell, 1), media.image(5 * cell, 4 * cell, 2)
    v, u = media.video(8, 4 * cell, 5 * cell, seed=5), media.video(7, 3 * cell, 4 * cell, 24, 20, 6)
    half: dict[str, Any] = {**UNIFORM, "keep": 0.5}
    few: dict[str, Any] = {**UNIFORM, "keep": 0.01}

    def of(prompt: str, *items: Any, visual: dict[str, Any] = half) -> Request:
        return media.with_media(prompt, *items, visual=visual)

    return {
        "pad typed after the image": of(f"{START}{IMAGE}what does {PAD} mean?{END}", a),
        "pad typed before the image": of(f"{START}what does {PAD} mean? {IMAGE}{END}", a),
        "pad typed twice": of(f"{START}{IMAGE}what do {PAD}{PAD} mean?{END}", a),
        "pad typed beside a video": of(f"{START}what does {PAD} mean? {VIDEO}{PAD}{END}", v),
        "pad typed between": of(f"{START}{IMAGE}{IMAGE}{PAD}{VIDEO}{PAD}{END}", a, b, v),
        "items touch with markers": of(f"{START}{IMAGE}{IMAGE}{VIDEO}{VIDEO}{END}", a, b, v, u),
        "images touch": of(f"{START}{PAD}{PAD}{END}", a, b),
        "images of one budget touch": of(f"{START}{PAD}{PAD}{PAD}{END}", a, a, b),
        "an unpruned video touches an image": of(
            f"{START}{PAD}<|video_pad|>{END}", a, v, visual={**half, "video": None}
        ),
        "ends in an image": of(f"{START}what is it? {PAD}", a),
        "ends in an image that keeps one token": of(f"{START}what is it? {PAD}", a, visual=few),
        "ends in a video": of(f"{START}what is it? <|video_pad|>", v),
        "ends in a video that keeps one token": of(f"{START}what is it? <|video_pad|>", v, visual=few),
        "begins with an image": of(f"{PAD}what is it?", a),
        "an image alone": of(PAD, a),
    }


AWKWARD = list(prompts("qwen2_5_vl"))


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_prompt(family: str, name: str, engines: EnginePool, oracles: Callable[[str], Oracle]) -> None:
    llm, request = engines.get(family), prompts(family)[name]
    answer = answer_of(generate(llm, [request], STEPS)[0])
    compare(answer, oracles(family).answer(request, STEPS))
