"""`POST /v1/pruning/preview`: what it answers, what it refuses, and what it makes the engine do."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from .conftest import configured
from .messages import IMAGE, message, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = """
limits: {min_keep: 0.05}
presets:
  fast: {visual: {keep: 0.25, strategy: uniform}}
admission: {max_inflight_visual_tokens: 100, max_waiting: 0}
"""


async def ask(client: httpx.AsyncClient, *parts: dict[str, Any], pruning: Any = None, **more: Any) -> httpx.Response:
    body = {"model": "demo", "messages": message("what is it?", *parts), **more}
    if pruning is not None:
        body["pruning"] = pruning
    return await client.post("/v1/pruning/preview", json=body)


async def chat(client: httpx.AsyncClient, *parts: dict[str, Any], pruning: Any) -> dict[str, Any]:
    body = {"model": "demo", "max_tokens": 2, "messages": message("what is it?", *parts), "pruning": pruning}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]


async def test_it_says_what_the_question_would_cost(client: httpx.AsyncClient, engine: Any) -> None:
    visual = {"strategy": "divprune", "keep": 0.5}
    pruning = {"visual": visual, "kv": {"strategy": "knorm", "keep": 0.5}}
    answer = await ask(client, IMAGE, pruning=pruning)
    assert answer.status_code == 200, answer.text
    seen, request = answer.json(), engine.core.requests[-1]
    # One token, no eviction, whatever the budget.
    assert request.sampling_params.max_tokens == 1
    assert not request.sampling_params.extra_args
    pruned = await chat(client, IMAGE, pruning={"visual": {**visual, "return_kept": True}})
    whole = await chat(client, IMAGE, pruning={"visual": None})
    assert seen["prompt_tokens"] == pruned["prompt_tokens"]
    assert seen["prompt_tokens_unpruned"] == whole["prompt_tokens"] > seen["prompt_tokens"]
    assert seen["visual"] == pruned["pruning"]["visual"]
    assert seen["visual"]["items"][0]["kept"]
    rows = seen["prompt_tokens"]
    assert seen["kv"] == {
        "strategy": "knorm",
        "prompt_tokens": rows,
        "kept_tokens": rows // 2,
        "rows_unpruned": seen["prompt_tokens_unpruned"],
        "rows_kept": rows // 2,
    }
    assert seen["clamped"] == []


@pytest.mark.parametrize("visual", [None, {"strategy": "gui_dedup", "keep": 0.5}])
async def test_the_engine_rests_where_pixels_are_enough(client: httpx.AsyncClient, engine: Any, visual: Any) -> None:
    requests, calls = len(engine.core.requests), engine.core.kept_calls
    image = {"type": "image_url", "image_url": {"url": picture(168, 168, (1, 2, 3))}}
    for _ in range(2):
        seen = (await ask(client, image, pruning={"visual": visual})).json()
        bits = np.unpackbits(np.frombuffer(base64.b64decode(seen["visual"]["items"][0]["kept"]), dtype=np.uint8))
        assert bits.sum() == seen["visual"]["kept_tokens"] == (36 if visual is None else 18)
        assert seen["kv"] is None
    assert (len(engine.core.requests), engine.core.kept_calls) == (requests, calls)
    # The engine has not seen this picture: a question has to bring it.
    await chat(client, image, pruning={"visual": visual})
    assert engine.core.requests[-1].mm_features[0].data is not None


async def test_presets_and_limits_apply(client: httpx.AsyncClient) -> None:
    by_model = (await ask(client, IMAGE, model="demo@fast")).json()
    by_name = (await ask(client, IMAGE, pruning="fast")).json()
    assert by_model["visual"] == by_name["visual"]
    assert by_name["visual"]["strategy"] == "uniform"
    clamped = (await ask(client, IMAGE, pruning={"visual": {"keep": 0.01}})).json()
    assert [entry["reason"] for entry in clamped["clamped"]] == ["min_keep"]
    assert clamped["visual"]["kept_tokens"] == 1


async def test_a_text_alone(client: httpx.AsyncClient, engine: Any) -> None:
    requests = len(engine.core.requests)
    seen = (await ask(client, pruning={"visual": {"keep": 0.5}})).json()
    assert seen["visual"] is None
    assert seen["prompt_tokens"] == seen["prompt_tokens_unpruned"] > 0
    assert len(engine.core.requests) == requests


@pytest.mark.parametrize(
    ("pruning", "param"),
    [
        ({"visual": {"keep": 7}}, "pruning.visual.keep"),
        ({"visual": {"keep": 0.5, "strategy": "nonsense"}}, "pruning.visual.strategy"),
        ({"kv": {"keep": 0.5, "max_tokens": 3}}, "pruning.kv.keep"),
        ("unknown", "pruning"),
    ],
)
async def test_a_bad_budget_is_refused_as_on_the_chat_route(
    client: httpx.AsyncClient, pruning: Any, param: str
) -> None:
    answer = await ask(client, IMAGE, pruning=pruning)
    body = {"model": "demo", "messages": message("hi", IMAGE), "pruning": pruning}
    by_chat = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == by_chat.status_code == 400
    assert answer.json() == by_chat.json()
    assert answer.json()["error"]["param"] == param


async def test_what_else_is_refused(client: httpx.AsyncClient) -> None:
    assert (await ask(client, model="another")).status_code == 404
    assert (await client.post("/v1/pruning/preview", json={"model": "demo"})).status_code == 400
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert (await ask(client, broken)).status_code == 400
    assert (await client.get("/v1/pruning/preview")).status_code == 405


async def test_it_is_admitted_like_a_question(client: httpx.AsyncClient) -> None:
    large = {"type": "image_url", "image_url": {"url": picture(336, 336)}}
    refused = await ask(client, large)
    assert refused.status_code == 400
    assert "visual tokens" in refused.json()["error"]["message"]
    assert (await ask(client, large, pruning={"visual": {"keep": 0.5}})).status_code == 200


@pytest.mark.asyncio(loop_scope="function")
async def test_what_the_operators_cap_changes_is_said(tmp_path: Path) -> None:
    from .engine import arguments, front_end

    with configured(tmp_path, "limits: {max_tokens: 20}"):
        async with front_end(arguments()) as (client, engine):
            seen = (await ask(client, IMAGE, pruning={"kv": {"keep": 0.5}})).json()
            assert seen["visual"]["kept_tokens"] == 20 < seen["visual"]["input_tokens"]
            assert seen["visual"]["items"][0]["kept"]
            assert [entry["reason"] for entry in seen["clamped"]] == ["max_tokens"]
            assert seen["kv"]["rows_kept"] == seen["prompt_tokens"] // 2
            assert len(engine.core.requests) == 1
