"""Fields of clients that vLLM would hand to the engine or take as cache keys, on every route that carries them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from vllm_prune.budget.kv import KEY, KvSpec
from vllm_prune.config.tenants import hash_key

from .messages import message, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALPHA, BETA = (f"key-of-{name}-0123456789abcdef" for name in ("alpha", "beta"))
ARGUMENTS = ("--enable-scale-out", "--trust-request-mm-kwargs")
CONFIG = f"""
limits: {{min_keep: 0.3}}
tenants:
  "{hash_key(ALPHA)}": {{name: alpha}}
  "{hash_key(BETA)}": {{name: beta}}
"""
IMAGE_TOKEN = 449
SPEC = KvSpec("snapkv", keep="0.5")


async def post(client: httpx.AsyncClient, path: str, key: str = ALPHA, **body: Any) -> httpx.Response:
    return await client.post(path, json={"model": "demo", **body}, headers={"authorization": f"Bearer {key}"})


async def chat(client: httpx.AsyncClient, *parts: dict[str, Any], key: str = ALPHA, **more: Any) -> httpx.Response:
    return await post(client, "/v1/chat/completions", key, max_tokens=1, messages=message("hi", *parts), **more)


async def generate(client: httpx.AsyncClient, key: str = ALPHA, **more: Any) -> httpx.Response:
    body = {"token_ids": [1, IMAGE_TOKEN, 2], "sampling_params": {"max_tokens": 1}, **more}
    return await post(client, "/inference/v1/generate", key, **body)


def named(uuid: Any, url: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": None if url is None else {"url": url}, "uuid": uuid}


def refusal(answer: httpx.Response, param: str) -> str:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    return str(error["message"])


@pytest.mark.slow
async def test_uuids_are_bound_to_tenant_and_content(client: httpx.AsyncClient) -> None:
    assert (await chat(client, named("a", picture(168)))).status_code == 200
    assert (await chat(client, named("a"))).status_code == 200
    assert "'a'" in refusal(await chat(client, named("a"), key=BETA), "uuid")
    other = await chat(client, named("a", picture(56, 56)), key=BETA)
    assert other.json()["usage"]["pruning"]["visual"]["input_tokens"] == 4
    assert "another image" in refusal(await chat(client, named("a", picture(56, 56))), "uuid")
    both = await chat(client, named("b", picture(168)), named("b", picture(56)), pruning={"visual": {"keep": 0.5}})
    assert "choose a new one" in refusal(both, "uuid")


async def test_a_uuid_alone_names_the_budget_that_it_is_not_kept_under(client: httpx.AsyncClient) -> None:
    assert (await chat(client, named("c", picture()))).status_code == 200
    text = refusal(await chat(client, named("c"), pruning={"visual": {"keep": 0.5}}), "uuid")
    for word in ("'c'", "keep 0.5", "send the item again"):
        assert word in text


async def test_the_token_route_binds_uuids_and_refuses_tensors(client: httpx.AsyncClient) -> None:
    def part(url: Any, uuid: Any = "d") -> list[dict[str, Any]]:
        return [{"type": "image_url", "url": url, "uuid": uuid}]

    assert (await generate(client, content_parts=part(picture(56, 56)))).status_code == 200
    assert (await generate(client, content_parts=part(None))).status_code == 200
    refusal(await generate(client, BETA, content_parts=part(None)), "uuid")
    refusal(await generate(client, content_parts=part(picture(84, 56))), "uuid")
    for uuid in (7, ["d"], {"d": 1}, True):
        assert "is text" in refusal(await generate(client, content_parts=part(picture(56, 56), uuid)), "uuid")
    for url in (5, ["x"], {"url": "x"}):
        refusal(await generate(client, content_parts=part(url)), "content_parts")
    placed = {"mm_hashes": {"image": ["a"]}, "mm_placeholders": {"image": [{"offset": 1, "length": 1}]}}
    for more in ({}, {"kwargs_data": {"image": ["!!!"]}}, {"kwargs_data": {"image": ["gaFhoWLA"]}}):
        text = refusal(await generate(client, features={**placed, **more}), "features")
        assert "--enable-mm-embeds" in text


WIRES = [SPEC.wire(), "{", "", 5, ["x"], '{"strategy": "snapkv"}']


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_our_extra_argument_is_refused_on_every_route(client: httpx.AsyncClient, engine: Any, wire: Any) -> None:
    extra, before = {KEY: wire}, len(engine.core.requests)
    words = [{"role": "user", "content": "hi"}]
    for path, body in (
        ("/v1/chat/completions", {"messages": words, "vllm_xargs": extra}),
        ("/v1/chat/completions", {"messages": words, "vllm_xargs": extra, "pruning": {"kv": {"keep": 0.5}}}),
        ("/v1/completions", {"prompt": ["a", "b"], "vllm_xargs": extra}),
        ("/v1/responses", {"input": "hi", "vllm_xargs": extra}),
        ("/v1/messages", {"messages": words, "max_tokens": 1, "vllm_xargs": extra}),
        ("/inference/v1/generate", {"token_ids": [1], "sampling_params": {"extra_args": extra}}),
    ):
        answer = await post(client, path, **body)
        assert answer.status_code == 400, (path, answer.text)
        assert "set by the server" in answer.text, (path, answer.text)
    assert len(engine.core.requests) == before


@pytest.mark.parametrize("wire", [{"keep": 0.02}, {}, None, "x"], ids=str)
async def test_processor_options_are_refused_where_clients_are_trusted_with_others(
    client: httpx.AsyncClient, wire: Any
) -> None:
    for pruning in ({}, {"pruning": {"visual": {"keep": 0.5}}}):
        answer = await chat(client, named(None, picture()), mm_processor_kwargs={"vllm_prune": wire}, **pruning)
        assert "set by the server" in refusal(answer, "mm_processor_kwargs")


async def test_a_decided_kv_budget_is_attached_once_per_engine_request(client: httpx.AsyncClient, engine: Any) -> None:
    before = len(engine.core.requests)
    budget = {"pruning": {"kv": {"keep": 0.5, "strategy": "snapkv"}}, "vllm_xargs": {"mine": 1}}
    for more in ({}, {"stream": True}):
        answer = await post(client, "/v1/completions", prompt=["a b", "c d"], n=2, max_tokens=1, **budget, **more)
        assert answer.status_code == 200, answer.text
    made = engine.core.requests[before:]
    assert len(made) == 8
    tickets = set()
    for request in made:
        extra = request.sampling_params.extra_args
        spec = json.loads(extra[KEY])
        assert (extra["mine"], spec["strategy"], spec["keep"]) == (1, "snapkv", "0.5")
        tickets.add(spec["ticket"])
        assert request.cache_salt
    assert len(tickets) == 2
    beams = await post(client, "/v1/completions", prompt="a", n=2, use_beam_search=True, max_tokens=1, **budget)
    assert "beam search" in refusal(beams, "pruning.kv")
