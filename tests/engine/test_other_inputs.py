"""The same items by other roads: token prompts, no processor cache, items by uuid, precomputed embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from . import media
from .checkpoints import CELL
from .engines import EnginePool, answer_of, generate
from .matrix import STEPS, UNIFORM
from .media import Request
from .oracle import Oracle, compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HALF: dict[str, Any] = {**UNIFORM, "keep": 0.5}


def mix(family: str, visual: media.Visual = HALF) -> Request:
    """An image, a video and another image."""
    cell = CELL[family]
    a, b = media.image(4 * cell, 6 * cell, 1), media.image(5 * cell, 4 * cell, 2)
    return media.ask(a, media.video(7, 3 * cell, 4 * cell, 24, 20, 6), b, visual=visual)


def ask(llm: Any, prompt: dict[str, Any]) -> Any:
    """One greedy answer to a prompt dict."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True, logprobs=0)
    return llm.generate([prompt], sampling, use_tqdm=False)[0]


def test_without_processor_cache(family: str, engines: EnginePool, oracles: Callable[[str], Oracle]) -> None:
    llm = engines.get(family, mm_processor_cache_gb=0)
    requests = [mix(family, visual) for visual in (HALF, None, {**UNIFORM, "max_tokens": 20}, HALF)]
    for request, output in zip(requests, generate(llm, requests, STEPS), strict=True):
        compare(answer_of(output), oracles(family).answer(request, STEPS))


def test_token_prompt(family: str, engines: EnginePool, oracles: Callable[[str], Oracle]) -> None:
    llm, request = engines.get(family), mix(family)
    prompt = request.for_vllm()
    ids = llm.get_tokenizer().encode(prompt.pop("prompt"))
    compare(answer_of(ask(llm, {**prompt, "prompt_token_ids": ids})), oracles(family).answer(request, STEPS))


def test_items_by_uuid(family: str, engines: EnginePool, oracles: Callable[[str], Oracle]) -> None:
    llm, request = engines.get(family), mix(family)
    uuids = {"image": ["first", "second"], "video": ["film"]}
    expected = oracles(family).answer(request, STEPS)
    compare(answer_of(ask(llm, {**request.for_vllm(), "multi_modal_uuids": uuids})), expected)
    bare = {"image": [None, None], "video": [None]}
    again = {**request.for_vllm(), "multi_modal_uuids": uuids, "multi_modal_data": bare}
    compare(answer_of(ask(llm, again)), expected)


def test_image_embeddings(family: str, engines: EnginePool, oracles: Callable[[str], Oracle]) -> None:
    llm, oracle, cell = engines.get(family, enable_mm_embeds=True), oracles(family), CELL[family]
    request = media.ask(media.image(4 * cell, 6 * cell, 1), media.image(5 * cell, 4 * cell, 2), visual=HALF)
    inputs, _, _ = oracle.expand(request)
    with torch.no_grad():
        features, levels = oracle.tower(inputs.pixel_values, inputs.image_grid_thw)
    embeds = {"image_embeds": torch.cat([features, *levels], dim=1), "image_grid_thw": inputs.image_grid_thw}
    prompt = {**request.for_vllm(), "multi_modal_data": {"image": embeds}}
    compare(answer_of(ask(llm, prompt)), oracle.answer(request, STEPS))
