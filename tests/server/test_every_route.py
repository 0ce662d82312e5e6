"""Budgets on every route of a real server that prepares prompts, and what HTTP itself has to be like."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from .media_files import image_part, png, user
from .test_refusals import HEADERS

PICTURE = png(112, 140)
DATA = base64.b64encode(PICTURE).decode()
CLAUDE = [
    {
        "role": "user",
        "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}},
            {"type": "text", "text": "hello"},
        ],
    }
]
CHAT = user([image_part(PICTURE)], "hello")
INPUT = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": image_part(PICTURE)["image_url"]["url"]},
            {"type": "input_text", "text": "hello"},
        ],
    }
]
BUDGET = {"visual": {"keep": 0.5, "strategy": "uniform"}}
KV = {"kv": {"keep": 0.5, "strategy": "streaming"}}

Count = Callable[[Any], int]
ROUTES: dict[str, tuple[dict[str, Any], Count]] = {
    "/v1/chat/completions": ({"messages": CHAT, "max_tokens": 2}, lambda body: body["usage"]["prompt_tokens"]),
    "/v1/chat/completions/batch": ({"messages": [CHAT], "max_tokens": 2}, lambda body: body["usage"]["prompt_tokens"]),
    "/v1/responses": ({"input": INPUT, "max_output_tokens": 2}, lambda body: body["usage"]["input_tokens"]),
    "/v1/messages": ({"messages": CLAUDE, "max_tokens": 2}, lambda body: body["usage"]["input_tokens"]),
    "/v1/messages/count_tokens": ({"messages": CLAUDE}, lambda body: body["input_tokens"]),
    "/invocations": ({"messages": CHAT, "max_tokens": 2}, lambda body: body["usage"]["prompt_tokens"]),
    "/tokenize": ({"messages": CHAT}, lambda body: body["count"]),
    "/v1/chat/completions/render": ({"messages": CHAT}, lambda body: len(body["token_ids"])),
    "/v1/responses/render": ({"input": INPUT}, lambda body: len(body["token_ids"])),
    "/v1/messages/render": ({"messages": CLAUDE, "max_tokens": 2}, lambda body: len(body["token_ids"])),
}
GENERATING = [path for path, (body, _) in ROUTES.items() if {"max_tokens", "max_output_tokens"} & set(body)][:-1]


@pytest.fixture(scope="module")
def post(server: Any, model: str) -> Callable[..., httpx.Response]:
    def send(path: str, **more: Any) -> httpx.Response:
        body, _ = ROUTES[path]
        return httpx.post(f"{server.url}{path}", json={"model": model, **body, **more}, timeout=120)

    return send


@pytest.mark.parametrize("path", ROUTES)
def test_a_visual_budget_is_honoured_or_refused(post: Callable[..., httpx.Response], path: str) -> None:
    count = ROUTES[path][1]
    answers = [post(path, **more) for more in ({}, {"pruning": BUDGET}, {"pruning": "fast"})]
    assert [answer.status_code for answer in answers] == [200] * 3, answers[0].text
    whole, half, quarter = (count(answer.json()) for answer in answers)
    assert (whole - half, whole - quarter) == (10, 15)
    refused = post(path, pruning={"visual": {"keep": 7}})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "pruning.visual.keep"
    assert post(path, vllm_xargs={"pruning": "no-such-preset"}).status_code == 400


@pytest.mark.parametrize("path", GENERATING)
def test_the_answer_says_what_was_kept(post: Callable[..., httpx.Response], path: str) -> None:
    usage = post(path, pruning={**BUDGET, **KV}).json()["usage"]
    assert usage["pruning"]["visual"] == {"strategy": "uniform", "input_tokens": 20, "kept_tokens": 10}
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    assert usage["pruning"]["kv"]["prompt_tokens"] == prompt


def test_a_batch_adds_up(server: Any, model: str) -> None:
    body = {"model": model, "messages": [CHAT, CHAT, user([], "hello")], "max_tokens": 4, "pruning": {**BUDGET, **KV}}
    answer = httpx.post(f"{server.url}/v1/chat/completions/batch", json=body, timeout=120)
    found = answer.json()["usage"]["pruning"]
    assert found["visual"]["kept_tokens"] == 20
    assert found["kv"]["compactions"] == 3


def test_anthropics_stream_says_it_at_both_ends(server: Any, model: str) -> None:
    body = {"model": model, "messages": CLAUDE, "max_tokens": 8, "stream": True, "pruning": {**BUDGET, **KV}}
    text = httpx.post(f"{server.url}/v1/messages", json=body, timeout=120).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    start = next(event for event in events if event["type"] == "message_start")
    end = next(event for event in events if event["type"] == "message_delta")
    assert start["message"]["usage"]["pruning"]["visual"]["kept_tokens"] == 10
    assert end["usage"]["pruning"]["visual"]["kept_tokens"] == 10
    assert end["usage"]["pruning"]["kv"]["compactions"] >= 1


def test_a_render_says_it_in_a_header_and_leaves_eviction_to_who_generates(post: Callable[..., httpx.Response]) -> None:
    answer = post("/v1/chat/completions/render", pruning=BUDGET)
    assert json.loads(answer.headers["x-pruning-usage"])["visual"]["kept_tokens"] == 10
    refused = post("/v1/chat/completions/render", pruning=KV)
    assert refused.json()["error"]["param"] == "pruning.kv"


def test_tokens_that_come_rendered_take_a_kv_budget_only(server: Any, model: str) -> None:
    url = f"{server.url}/inference/v1/generate"
    body = {"model": model, "token_ids": list(range(20, 80)), "sampling_params": {"max_tokens": 8, "ignore_eos": True}}
    answer = httpx.post(url, json={**body, "pruning": KV}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert server.metric("vllm_prune_kv_compactions_total", strategy="streaming") >= 1
    refused = httpx.post(url, json={**body, "pruning": BUDGET}, timeout=60)
    assert refused.json()["error"]["param"] == "pruning.visual"


@pytest.mark.parametrize("path", ["/detokenize", "/v1/completions/derender", "/v1/systemone"])
def test_routes_that_can_do_nothing_with_it_refuse(server: Any, model: str, path: str) -> None:
    answer = httpx.post(f"{server.url}{path}", json={"model": model, "tokens": [1], "pruning": BUDGET}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "pruning"


@pytest.mark.parametrize(
    ("path", "more"), [("/v1/chat/completions", {"messages": CHAT}), ("/v1/responses", {"input": INPUT})]
)
def test_a_null_detail_is_no_detail(server: Any, model: str, path: str, more: dict[str, Any]) -> None:
    text = json.dumps({"model": model, "max_tokens": 2, "max_output_tokens": 2, **more})
    text = text.replace('"image_url": {', '"image_url": {"detail": null, ').replace(
        '"type": "input_image"', '"type": "input_image", "detail": null'
    )
    assert "null" in text
    answer = httpx.post(f"{server.url}{path}", content=text, headers=HEADERS, timeout=60)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "content",
    [b"{", b'{"model": "\xff"}', b'{"a": ' + b"9" * 5000 + b"}", b'{"a":' * 3000 + b"1" + b"}" * 3000, b"\x1f\x8b"],
    ids=["syntax", "not UTF-8", "5000 digits", "deep", "gzip"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/invocations", "/v1/messages", "/tokenize", "/detokenize"])
def test_bodies_that_cannot_be_read(server: Any, path: str, content: bytes) -> None:
    packed = content.startswith(b"\x1f")
    headers = {**HEADERS, **({"content-encoding": "gzip"} if packed else {})}
    answer = httpx.post(f"{server.url}{path}", content=content, headers=headers, timeout=60)
    assert answer.status_code == (415 if packed else 400)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/health/startup", "/metrics"])
def test_probes_take_head(server: Any, path: str) -> None:
    answer = httpx.head(f"{server.url}{path}", timeout=30)
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_stream_to_http_1_0_is_not_chunked(server: Any) -> None:
    body = json.dumps({"messages": user([], "hi"), "max_tokens": 2, "stream": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    headers, _, text = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in headers.lower()
    assert b"connection: close" in headers.lower()
    assert text.startswith(b"data: {")
    assert text.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        ("/v1/chat/completions", {"messages": [], "temperature": "warm"}, "temperature"),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]},
         "input.0.content.0.text"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line(server: Any, path: str, more: dict[str, Any], param: str) -> None:
    answer = httpx.post(f"{server.url}{path}", json=more, timeout=60)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert "\n" not in error["message"]
