"""Tenants, their limits and their rates, with no engine behind the front end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from vllm_prune.config.tenants import hash_key

from .messages import IMAGE, message, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALPHA, BETA, GAMMA = (f"key-of-{name}-0123456789abcdef" for name in ("alpha", "beta", "gamma"))
SECONDS = 0.02
CONFIG = f"""
limits: {{min_keep: 0.05}}
presets:
  fast: {{visual: {{keep: 0.25, strategy: uniform}}}}
admission: {{max_inflight_requests: 4, max_waiting: 0}}
tenants:
  "{hash_key(ALPHA)}": {{name: alpha}}
  "{hash_key(BETA)}":
    name: beta
    default_preset: fast
    limits: {{max_keep: 0.5}}
    max_inflight_requests: 1
  "{hash_key(GAMMA)}": {{name: gamma, rate: {{requests_per_second: 0.01, burst: 1}}}}
"""


async def ask(client: httpx.AsyncClient, key: str | None, *parts: dict[str, Any], **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": "demo", "max_tokens": 2, "messages": message("hi", *parts), **more}
    return await client.post("/v1/chat/completions", json=body, headers=headers)


async def test_without_a_key_only_probes_answer(client: httpx.AsyncClient) -> None:
    assert (await ask(client, None)).status_code == 401
    assert (await ask(client, "key-of-nobody-0123456789")).status_code == 401
    assert (await client.get("/v1/models")).status_code == 401
    assert (await client.get("/health/live")).status_code == 200


async def test_defaults_and_limits_are_the_tenants(client: httpx.AsyncClient) -> None:
    alpha = (await ask(client, ALPHA, IMAGE)).json()["usage"]["pruning"]["visual"]
    beta = (await ask(client, BETA, IMAGE)).json()["usage"]["pruning"]["visual"]
    assert (alpha["strategy"], beta["strategy"]) == ("none", "uniform")
    assert beta["kept_tokens"] == beta["input_tokens"] // 4
    capped = (await ask(client, BETA, IMAGE, pruning={"visual": {"keep": 0.9}})).json()["usage"]["pruning"]
    assert capped["visual"]["kept_tokens"] == capped["visual"]["input_tokens"] // 2
    assert [entry["reason"] for entry in capped["clamped"]] == ["max_keep"]


async def test_concurrency_is_a_tenants_own(client: httpx.AsyncClient) -> None:
    slow = asyncio.create_task(ask(client, BETA, max_tokens=40))
    await asyncio.sleep(0.2)
    refused = await ask(client, BETA)
    assert refused.status_code == 429
    assert refused.headers["retry-after"]
    assert (await ask(client, ALPHA)).status_code == 200
    assert (await slow).status_code == 200
    assert (await ask(client, BETA)).status_code == 200


async def test_rates_are_refused_with_when_to_come_back(client: httpx.AsyncClient) -> None:
    assert (await ask(client, GAMMA)).status_code == 200
    refused = await ask(client, GAMMA)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 10


async def test_one_request_too_many_is_refused_at_once(client: httpx.AsyncClient) -> None:
    running = [asyncio.create_task(ask(client, ALPHA, max_tokens=40)) for _ in range(4)]
    await asyncio.sleep(0.3)
    began = time.monotonic()
    refused = await ask(client, ALPHA)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "server_overloaded"
    assert time.monotonic() - began < 1
    assert [answer.status_code for answer in await asyncio.gather(*running)] == [200] * 4


async def test_prefixes_are_hashed_apart(client: httpx.AsyncClient, engine: Any) -> None:
    """The engine gets another salt for each tenant, whatever salt a client sends, and the same one twice."""
    salts = []
    for key in (ALPHA, BETA, ALPHA):
        await ask(client, key, cache_salt="mine")
        salts.append(engine.core.requests[-1].cache_salt)
    assert salts[0] == salts[2] != salts[1]


async def test_pictures_are_hashed_apart_under_one_uuid(client: httpx.AsyncClient, engine: Any) -> None:
    """A uuid of a client's names a picture of its tenant, not another tenant's."""
    hashes = []
    for key in (ALPHA, BETA, ALPHA):
        part = {"type": "image_url", "image_url": {"url": picture()}, "uuid": "the-same"}
        assert (await ask(client, key, part, pruning={"visual": None})).status_code == 200
        hashes.append(engine.core.requests[-1].mm_features[0].mm_hash)
    assert hashes[0] == hashes[2] != hashes[1]
