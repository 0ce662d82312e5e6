"""What a request gets that names no strategy, on its way through the whole front end to an engine core."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from vllm_prune.budget.kv import KvSpec
from vllm_prune.support.workers import KvWorkers, remember_workers, workers_of

from .messages import IMAGE, message
from .test_return_kept import clip

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

TOWER = {"strategy": "divprune", "options": {"where": "tower"}}


async def seen(client: httpx.AsyncClient, engine: Any, pruning: Any, *parts: dict[str, Any]) -> Any:
    """The request as the core gets it."""
    body = {"model": "demo", "max_tokens": 2, "messages": message("hi", *parts), "pruning": pruning}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return engine.core.requests[-1]


async def key_of(client: httpx.AsyncClient, engine: Any, part: dict[str, Any], **visual: Any) -> str:
    """Cache key of an item under half of its visual tokens."""
    (feature,) = (await seen(client, engine, {"visual": {"keep": 0.5, **visual}}, part)).mm_features
    return str(feature.identifier)


async def test_equal_budgets_have_equal_keys(client: httpx.AsyncClient, engine: Any) -> None:
    video = clip(8)
    inside = await key_of(client, engine, video, **TOWER)
    assert await key_of(client, engine, video) == inside
    assert await key_of(client, engine, video, strategy="divprune", options={"where": "auto"}) == inside
    assert await key_of(client, engine, video, strategy="divprune") != inside
    assert await key_of(client, engine, IMAGE) == await key_of(client, engine, IMAGE, strategy="vidcom2")
    # Options that the default does not have, and `divprune` has.
    named = await key_of(client, engine, IMAGE, **TOWER)
    assert await key_of(client, engine, IMAGE, options={"where": "tower"}) == named


async def test_a_default_is_not_refused_where_the_tower_is_hidden(
    client: httpx.AsyncClient, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.vllm_config.compilation_config, "compile_mm_encoder", True)
    video = clip(8)
    assert await key_of(client, engine, video) == await key_of(client, engine, video, strategy="divprune")
    body = {"model": "demo", "messages": message("hi", video), "pruning": {"visual": {"keep": 0.5, **TOWER}}}
    refused = await client.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "pruning.visual.options.where"
    assert (await client.get("/v1/pruning/strategies")).json()["defaults"]["video"]["options"]["where"] == "embed"


async def test_the_cache_without_norms(client: httpx.AsyncClient, engine: Any) -> None:
    workers = workers_of(engine.vllm_config)
    assert workers is not None

    async def strategy(**kv: Any) -> str:
        request = await seen(client, engine, {"kv": {"keep": 0.5, **kv}})
        spec = KvSpec.of(request.sampling_params.extra_args)
        assert spec is not None
        return spec.strategy

    assert await strategy() == "gui_kv"
    assert await strategy(options={"mode": "max"}) == "snapkv"
    remember_workers(engine.vllm_config, KvWorkers((), workers.offers - {"saliency"}))
    try:
        assert await strategy() == "snapkv"
        body = {"model": "demo", "messages": message("hi"), "pruning": {"kv": {"keep": 0.5, "strategy": "gui_kv"}}}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 400
        assert (await client.get("/v1/pruning/strategies")).json()["defaults"]["kv"]["strategy"] == "snapkv"
    finally:
        remember_workers(engine.vllm_config, workers)


async def test_what_is_in_force_is_said(client: httpx.AsyncClient) -> None:
    defaults = (await client.get("/v1/pruning/strategies")).json()["defaults"]
    assert defaults["image"] == {"strategy": "vidcom2", "options": {}}
    assert defaults["video"] == {"strategy": "divprune", "options": {"after": None, "where": "tower"}}
    assert defaults["kv"]["strategy"] == "gui_kv"
