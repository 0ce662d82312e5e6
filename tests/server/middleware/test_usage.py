"""`usage.pruning` in every shape of answer, however a stream is cut; without an engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from vllm.entrypoints.serve.utils.api_utils import with_cancellation
from vllm.exceptions import VLLMValidationError

from vllm_prune.config.load import PruneConfig
from vllm_prune.request import current
from vllm_prune_server.openai.routes import HONOURING

from .application import ITEM, MODEL, USAGE, Served, streamed

CONFIG = PruneConfig()
BUDGET = {"visual": {"keep": 0.25, "strategy": "uniform"}}
OFF = {"visual": None, "kv": None, "clamped": []}
PRUNED = {**OFF, "visual": {"strategy": "uniform", "input_tokens": 100, "kept_tokens": 25}}
WITH_USAGE = [path for path, route in HONOURING.items() if route.usage == "usage" and not route.form]
BESIDE = [path for path, route in HONOURING.items() if route.usage == "top"]
HEADER = [path for path, route in HONOURING.items() if route.usage == "header"]


def body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [], **more}


def event(document: Any, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(document)}\n\n".encode()


def documents(text: str) -> list[Any]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize("path", WITH_USAGE)
def test_json(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    served = Served(CONFIG, None, monkeypatch)
    answer = served.post(path, body(pruning=BUDGET))
    assert answer.json() == {"id": "x", "usage": {**USAGE, "pruning": PRUNED}}
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert served.post(path, body()).json()["usage"]["pruning"] == OFF


async def counted(request: Any, parsed: Any) -> Response:
    context = current()
    assert context is not None
    context.record_items([ITEM])
    return JSONResponse({"count": 30, "tokens": [1]})


@pytest.mark.parametrize("path", BESIDE)
def test_beside_a_count_where_a_budget_applies(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    served = Served(CONFIG, counted, monkeypatch)
    assert served.post(path, body(pruning=BUDGET)).json() == {"count": 30, "tokens": [1], "pruning": PRUNED}
    assert served.post(path, body()).content == b'{"count":30,"tokens":[1]}'


@pytest.mark.parametrize("path", HEADER)
def test_in_a_header_where_the_answer_is_another_routes_request(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    served = Served(CONFIG, counted, monkeypatch)
    answer = served.post(path, body(pruning=BUDGET))
    assert answer.content == b'{"count":30,"tokens":[1]}'
    assert json.loads(answer.headers["x-pruning-usage"]) == PRUNED


@pytest.mark.parametrize("status", [200, 400, 404, 503])
def test_answers_without_usage_stay_as_they_are(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    async def answer(request: Any, parsed: Any) -> Response:
        return JSONResponse({"error": {"message": "é"}}, status_code=status)

    content = Served(CONFIG, answer, monkeypatch).post("/v1/chat/completions", body()).content
    assert content == JSONResponse({"error": {"message": "é"}}).body

    async def text(request: Any, parsed: Any) -> Response:
        return PlainTextResponse('"usage"', status_code=status)

    assert Served(CONFIG, text, monkeypatch).post("/v1/chat/completions", body()).text == '"usage"'


CHUNKS = [
    event({"choices": [{"delta": {"content": '"usage" é\n'}}], "usage": None}),
    b": ping\n\n",
    event({"choices": [], "usage": USAGE}),
    b"data: [DONE]\n\n",
]


@pytest.mark.parametrize("size", [1, 2, 7, 50, 10_000])
def test_streams_however_they_are_cut(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    whole = b"".join(CHUNKS)
    cut = [whole[start : start + size] for start in range(0, len(whole), size)]
    text = Served(CONFIG, streamed(*cut), monkeypatch).post("/v1/chat/completions", body()).text
    first, last = documents(text)
    assert first == json.loads(CHUNKS[0][6:])
    assert last == {"choices": [], "usage": {**USAGE, "pruning": OFF}}
    assert text.startswith(CHUNKS[0].decode())
    assert text.endswith("data: [DONE]\n\n")
    assert ": ping\n\n" in text


def test_anthropics_events(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = {"input_tokens": 3, "output_tokens": 0}
    events = [
        event({"type": "message_start", "message": {"id": "m", "usage": usage}}, "message_start"),
        event({"type": "content_block_delta", "delta": {"text": "hi"}}, "content_block_delta"),
        event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}, "message_delta"),
        event({"type": "message_stop"}, "message_stop"),
    ]
    text = Served(CONFIG, streamed(*events), monkeypatch).post("/v1/messages", body()).text
    start, middle, end, stop = documents(text)
    assert start["message"]["usage"] == {**usage, "pruning": OFF}
    assert end["usage"] == {**usage, "pruning": OFF}
    assert "pruning" not in json.dumps([middle, stop])
    assert text.startswith("event: message_start\n")


def test_events_of_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event({"type": "response.created", "response": {"usage": None}}),
              event({"type": "response.completed", "response": {"usage": USAGE}})]  # fmt: skip
    text = Served(CONFIG, streamed(*events), monkeypatch).post("/v1/responses", body()).text
    created, completed = documents(text)
    assert created["response"] == {"usage": None}
    assert completed["response"]["usage"]["pruning"] == OFF


@pytest.mark.parametrize("error", [ValueError("empty list"), VLLMValidationError("empty list")])
def test_a_clients_fault_within_a_stream_is_its_last_event(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    served = Served(CONFIG, streamed(CHUNKS[0], b"data: {", error=error), monkeypatch)
    answer = served.post("/v1/responses", body())
    assert answer.status_code == 200
    *_, last = documents(answer.text)
    assert last["type"] == "error"
    assert "empty list" in last["message"]
    assert last["sequence_number"] == 1
    assert served.context is not None
    assert served.context.complete


def test_a_defect_within_a_stream_still_breaks_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(CONFIG, streamed(CHUNKS[0], error=KeyError("ours")), monkeypatch)
    answer = served.post("/v1/responses", body())
    assert "ours" not in answer.text
    assert served.context is not None
    assert not served.context.complete


def test_limits_that_changed_a_budget_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(PruneConfig.model_validate({"limits": {"min_keep": 0.5}}), None, monkeypatch)
    (entry,) = served.post("/v1/messages", body(pruning=BUDGET)).json()["usage"]["pruning"]["clamped"]
    assert (entry["requested"], entry["applied"]) == (0.25, 0.5)


async def nothing(request: Any, parsed: Any) -> Response:
    return Response(media_type="application/json")


@pytest.mark.parametrize("path", [*WITH_USAGE, *BESIDE])
def test_an_answer_without_a_body_stays_empty(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    answer = Served(CONFIG, nothing, monkeypatch).post(path, body(pruning=BUDGET))
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")


@with_cancellation
async def endless(request: Any, raw_request: Any) -> Response:
    await asyncio.sleep(60)
    raise AssertionError("vLLM cancels it")


async def cancelled(request: Any, parsed: Any) -> Response:
    answer: Response = await endless(parsed, raw_request=request)
    return answer


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/v1/chat/completions/render"])
async def test_a_client_that_leaves_is_no_fault(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """vLLM 0.32 answers `null` to it, 0.33 an empty body without a type."""
    served = Served(CONFIG, cancelled, monkeypatch)
    data = json.dumps(body(pruning=BUDGET)).encode()
    messages = iter([{"type": "http.request", "body": data, "more_body": False}])
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "root_path": "", "scheme": "http", "headers": headers, "http_version": "1.1",
             "client": ("127.0.0.1", 1), "server": ("server", 80)}  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    await asyncio.wait_for(served.app(scope, receive, send), 10)
    start, *parts = sent
    assert start["status"] == 200
    assert b"".join(part.get("body", b"") for part in parts) in (b"null", b"")
