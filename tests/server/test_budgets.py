"""Budgets over HTTP with the OpenAI SDK: what is reported is what was prefilled."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from vllm_prune.catalogue import VISUAL

from .media_files import image_part, jpeg, mp4, png, user, video_part

MIXES: dict[str, list[dict[str, Any]]] = {
    "image": [image_part(png(168, 224))],
    "jpeg": [image_part(jpeg(168, 224), "image/jpeg")],
    "odd": [image_part(png(97, 211, 3))],
    "video": [video_part(mp4(8, 112, 140))],
    "one frame": [video_part(mp4(1, 112, 140))],
    "image video": [image_part(png(112, 112, 1)), video_part(mp4(6, 112, 112, 1))],
    "video image": [video_part(mp4(5, 84, 112, 2)), image_part(png(140, 112, 2))],
    "two videos": [video_part(mp4(4, 84, 84, 3)), video_part(mp4(7, 112, 84, 4))],
    "six": [image_part(png(84 + 28 * i, 140, i)) for i in range(6)],
}
BUDGETS: list[dict[str, Any]] = [
    {"keep": 1.0, "strategy": "uniform"},
    {"keep": 0.5},
    {"keep": 0.25, "strategy": "random"},
    {"keep": 0.01, "strategy": "uniform"},
    {"max_tokens": 13, "strategy": "uniform"},
    {"keep": 0.5, "video": {"strategy": "evs"}},
    {"keep": 0.3, "strategy": "vidcom2"},
    {"keep": 0.3, "strategy": "gui_dedup"},
    {"keep": 0.3, "strategy": "recv_attn"},
    {"keep": 0.3, "strategy": "stts"},
]


def ask(client: openai.OpenAI, model: str, parts: list[dict[str, Any]], pruning: Any = None, **more: Any) -> Any:
    body = {} if pruning is None else {"pruning": pruning}
    return client.chat.completions.create(
        model=model, messages=user(parts), max_tokens=4, temperature=0, extra_body=body, **more
    )


@pytest.fixture(scope="module")
def text_tokens(client: openai.OpenAI, model: str) -> dict[str, int]:
    """Text tokens of each mix: vLLM's prompt count of the unpruned request less all its visual tokens."""
    counts = {}
    for name, parts in MIXES.items():
        usage = ask(client, model, parts).usage
        counts[name] = usage.prompt_tokens - usage.pruning["visual"]["input_tokens"]
    assert len(set(counts.values())) > 1
    return counts


@pytest.mark.parametrize("mix", MIXES)
def test_reported_equals_prefilled(client: openai.OpenAI, model: str, text_tokens: dict[str, int], mix: str) -> None:
    for budget in BUDGETS:
        usage = ask(client, model, MIXES[mix], {"visual": budget}).usage
        visual = usage.pruning["visual"]
        assert usage.prompt_tokens - text_tokens[mix] == visual["kept_tokens"], (mix, budget)
        assert 1 <= visual["kept_tokens"] <= visual["input_tokens"]
        if "max_tokens" in budget:
            assert visual["kept_tokens"] == min(budget["max_tokens"], visual["input_tokens"])
        elif budget["keep"] < 1:
            items = len(MIXES[mix])
            exact = budget["keep"] * visual["input_tokens"]
            assert exact - items <= visual["kept_tokens"] <= max(exact, items)
        else:
            assert visual["kept_tokens"] == visual["input_tokens"]
        assert usage.pruning["clamped"] == []


def test_every_strategy_keeps_as_many(client: openai.OpenAI, model: str, text_tokens: dict[str, int]) -> None:
    """All at once, each with a picture and a video, and as many visual tokens as the simplest one keeps of the same."""

    def kept(name: str, modalities: Iterable[str], options: dict[str, Any] | None = None) -> int:
        part = {"strategy": name, "keep": 0.3, "options": options or {}}
        budget = {modality: part if modality in modalities else None for modality in ("image", "video")}
        usage = ask(client, model, MIXES["image video"], {"visual": budget}).usage
        count = usage.pruning["visual"]["kept_tokens"]
        assert usage.prompt_tokens - text_tokens["image video"] == count, name
        return int(count)

    classes = {name: VISUAL.strategy_class(name) for name in VISUAL.names() if name != "none"}
    asked = {name: cls.modalities for name, cls in classes.items() if not {"weights", "selector"} & cls().wanted()}
    assert len(asked) >= 25
    wanted = {modalities: kept("uniform", modalities) for modalities in set(asked.values())}
    with ThreadPoolExecutor(16) as threads:
        counts = dict(zip(asked, threads.map(kept, asked, asked.values()), strict=True))
    for name, modalities in asked.items():
        most = wanted[modalities]
        assert (0 < counts[name] <= most) if name == "resize" else (counts[name] == most), name
    # Those that merge, with several positions for each token.
    merging = [name for name in asked if "positions" in classes[name].Options.model_fields]
    with ThreadPoolExecutor(16) as threads:
        several = list(threads.map(lambda name: kept(name, asked[name], {"positions": 8}), merging))
    assert several == [counts[name] for name in merging]


def test_each_modality_has_its_own_budget(client: openai.OpenAI, model: str) -> None:
    parts = MIXES["image video"]
    only_video = ask(client, model, parts, {"visual": {"image": None, "keep": 0.5, "strategy": "evs"}}).usage
    only_image = ask(client, model, parts, {"visual": {"video": None, "keep": 0.5, "strategy": "uniform"}}).usage
    both = ask(client, model, parts, {"visual": {"keep": 0.5, "strategy": "uniform"}}).usage
    given = both.pruning["visual"]["input_tokens"]
    dropped = [given - usage.pruning["visual"]["kept_tokens"] for usage in (only_video, only_image, both)]
    assert dropped[0] + dropped[1] == dropped[2]
    assert min(dropped) > 0


def test_presets_and_off(client: openai.OpenAI, model: str) -> None:
    parts = MIXES["image"]
    by_field = ask(client, model, parts, "fast").usage
    by_model = ask(client, f"{model}@fast", parts).usage
    explicit = ask(client, model, parts, {"visual": {"keep": 0.25, "strategy": "uniform"}}).usage
    assert by_field.pruning == by_model.pruning == explicit.pruning
    assert by_field.prompt_tokens == by_model.prompt_tokens == explicit.prompt_tokens
    for off in (None, {}, {"visual": None, "kv": None}, "full"):
        usage = ask(client, model, parts, off).usage
        assert usage.pruning["visual"]["strategy"] == "none"
        assert usage.pruning["visual"]["kept_tokens"] == usage.pruning["visual"]["input_tokens"]


def test_clamped_is_said(client: openai.OpenAI, model: str) -> None:
    usage = ask(client, model, MIXES["image"], {"visual": {"keep": 0.001, "strategy": "uniform"}}).usage
    assert usage.pruning["clamped"] == [
        {"param": "pruning.visual.keep", "requested": 0.001, "applied": 0.005, "reason": "min_keep"}
    ]


def test_streams_report_in_the_last_chunk(client: openai.OpenAI, model: str) -> None:
    budget = {"visual": {"keep": 0.5, "strategy": "uniform"}}
    plain = ask(client, model, MIXES["image"], budget)
    chunks = list(ask(client, model, MIXES["image"], budget, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.pruning == plain.usage.pruning
    assert all(chunk.usage is None for chunk in chunks[:-1])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    without = list(ask(client, model, MIXES["image"], budget, stream=True))
    assert all(chunk.usage is None for chunk in without)


def test_responses_api(client: openai.OpenAI, model: str) -> None:
    url = MIXES["image"][0]["image_url"]["url"]
    content = [{"type": "input_image", "image_url": url, "detail": "auto"}, {"type": "input_text", "text": "hello"}]
    call: dict[str, Any] = {
        "model": model,
        "input": [{"role": "user", "content": content}],
        "max_output_tokens": 4,
        "temperature": 0,
        "extra_body": {"pruning": {"visual": {"keep": 0.5, "strategy": "uniform"}}},
    }
    usage = client.responses.create(**call).usage
    assert usage.pruning["visual"]["kept_tokens"] * 2 == usage.pruning["visual"]["input_tokens"]
    with client.responses.stream(**call) as stream:
        final = list(stream)[-1]
    assert final.type == "response.completed"
    assert final.response.usage.pruning == usage.pruning


def test_text_only_requests_report_nothing_visual(client: openai.OpenAI, model: str) -> None:
    pruning = {"visual": {"keep": 0.5}}
    chat = ask(client, model, [], pruning).usage
    assert chat.pruning == {"visual": None, "kv": None, "clamped": []}
    completion = client.completions.create(model=model, prompt="hello", max_tokens=2, extra_body={"pruning": pruning})
    assert completion.usage.pruning["visual"] is None


async def test_budgets_do_not_meet_in_a_batch(server: Any, model: str) -> None:
    """Sixteen requests at once, each with its own budget, answer as they do alone."""
    import asyncio

    parts = MIXES["image"]
    budgets = [
        {"visual": {"keep": round(0.06 * i, 2), "strategy": s}} for i in range(1, 9) for s in ("uniform", "random")
    ]
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", timeout=120) as client:

        async def one(budget: dict[str, Any]) -> tuple[str, int, list[float]]:
            answer = await client.chat.completions.create(
                model=model, messages=user(parts), max_tokens=6, temperature=0, logprobs=True,
                extra_body={"pruning": budget, "ignore_eos": True},
            )  # fmt: skip
            choice = answer.choices[0]
            return choice.message.content, answer.usage.prompt_tokens, [t.logprob for t in choice.logprobs.content]

        alone = [await one(budget) for budget in budgets]
        together = await asyncio.gather(*(one(budget) for budget in budgets))
    assert [(text, tokens) for text, tokens, _ in alone] == [(text, tokens) for text, tokens, _ in together]
    worst = max(abs(a - b) for x, y in zip(alone, together, strict=True) for a, b in zip(x[2], y[2], strict=True))
    # bfloat16 kernels sum in another order when the batch is larger.
    assert worst < 0.05
