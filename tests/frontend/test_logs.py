"""The log line of a request, with no engine behind the front end: what was spent, nothing of the content."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from .messages import IMAGE, message

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = """
limits: {min_keep: 0.05}
logging: {format: json, requests: true}
"""


class Lines(logging.Handler):
    """Keeps the records of request lines."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(vars(record))


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    handler, logger = Lines(), logging.getLogger("vllm.vllm_prune.requests")
    logger.addHandler(handler)
    yield handler.records
    logger.removeHandler(handler)


async def ask(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    body = {"model": "demo", "max_tokens": 3, "messages": message("a secret word", IMAGE), **more}
    return await client.post("/v1/chat/completions", json=body, headers={"x-request-id": "line-1"})


async def test_a_request_has_one_line(client: httpx.AsyncClient, lines: list[dict[str, Any]]) -> None:
    answer = await ask(client, pruning={"visual": {"keep": 0.5, "strategy": "uniform"}})
    (line,) = lines
    assert line["request_id"] == answer.headers["x-request-id"] == "line-1"
    assert (line["route"], line["status"], line["model"]) == ("/v1/chat/completions", 200, "demo")
    assert line["budget"]["image"] == {"strategy": "uniform", "keep": 0.5}
    assert line["pruning"]["visual"]["kept_tokens"] * 2 == line["pruning"]["visual"]["input_tokens"]
    assert line["tokens"]["completion"] == 3
    assert line["tokens"]["prompt"] == answer.json()["usage"]["prompt_tokens"]
    assert "secret" not in repr(line)


async def test_a_refusal_says_why(client: httpx.AsyncClient, lines: list[dict[str, Any]]) -> None:
    assert (await ask(client, pruning={"visual": {"keep": 7}})).status_code == 400
    (line,) = lines
    assert (line["status"], line["rejected"]) == (400, "invalid_budget")


async def test_two_requests_of_one_id_are_not_mixed_up(client: httpx.AsyncClient, lines: list[dict[str, Any]]) -> None:
    import asyncio

    await asyncio.gather(ask(client, max_tokens=2), ask(client, max_tokens=5))
    assert sorted(line["tokens"]["completion"] for line in lines) == [2, 5]
