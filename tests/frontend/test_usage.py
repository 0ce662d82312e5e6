"""What answers say of budgets, on the whole front end with no engine behind it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from .messages import IMAGE, message

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def usage(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/v1/chat/completions", json={"model": "demo", "max_tokens": 2, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]


async def test_text_alone_reports_nothing(client: httpx.AsyncClient) -> None:
    assert (await usage(client, messages=message("hi")))["pruning"] == {"visual": None, "kv": None, "clamped": []}


async def test_kept_tokens_are_what_the_prompt_grew_by(client: httpx.AsyncClient) -> None:
    text = (await usage(client, messages=message("hi")))["prompt_tokens"]
    whole = await usage(client, messages=message("hi", IMAGE))
    half = await usage(client, messages=message("hi", IMAGE), pruning={"visual": {"keep": 0.5, "strategy": "uniform"}})
    assert whole["pruning"]["visual"]["strategy"] == "none"
    visual = half["pruning"]["visual"]
    assert visual["input_tokens"] == whole["pruning"]["visual"]["input_tokens"]
    assert visual["kept_tokens"] == visual["input_tokens"] // 2
    assert whole["prompt_tokens"] - half["prompt_tokens"] == visual["input_tokens"] - visual["kept_tokens"]
    assert half["prompt_tokens"] > text


async def test_a_clamped_budget_is_said(client: httpx.AsyncClient) -> None:
    report = (await usage(client, messages=message("hi", IMAGE), pruning={"visual": {"keep": 0.01}}))["pruning"]
    assert report["clamped"] == [
        {"param": "pruning.visual.keep", "requested": 0.01, "applied": 0.05, "reason": "min_keep"}
    ]


async def test_a_preset_by_name_and_by_model(client: httpx.AsyncClient) -> None:
    by_field = await usage(client, messages=message("hi", IMAGE), pruning="fast")
    by_model = await usage(client, messages=message("hi", IMAGE), model="demo@fast")
    assert by_field["pruning"] == by_model["pruning"]
    assert by_field["pruning"]["visual"]["strategy"] == "uniform"


async def test_the_last_chunk_of_a_stream_has_it(client: httpx.AsyncClient) -> None:
    body = {
        "model": "demo", "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True},
        "messages": message("hi", IMAGE), "pruning": {"visual": {"keep": 0.5}},
    }  # fmt: skip
    answer = await client.post("/v1/chat/completions", json=body)
    events = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: {")]
    reports = [event["usage"]["pruning"] for event in events if event.get("usage")]
    assert len(reports) == 1
    assert reports[0]["visual"]["kept_tokens"] * 2 == reports[0]["visual"]["input_tokens"]
    assert answer.text.rstrip().endswith("data: [DONE]")
