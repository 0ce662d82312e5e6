"""One line for what pydantic says in hundreds."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.exceptions import VLLMValidationError

from vllm_prune_server.openai.validation import answer_validation_error, explain


@pytest.fixture(scope="module")
def client() -> TestClient:
    from fastapi.exceptions import RequestValidationError

    app = FastAPI()
    models: dict[str, Any] = {
        "/v1/chat/completions": ChatCompletionRequest,
        "/v1/completions": CompletionRequest,
        "/v1/responses": ResponsesRequest,
        "/v1/messages": AnthropicMessagesRequest,
    }
    for path, model in models.items():

        async def route(request: Any) -> dict[str, str]:
            return {}

        route.__annotations__["request"] = model
        app.add_api_route(path, route, methods=["POST"])
    app.exception_handler(RequestValidationError)(answer_validation_error)
    return TestClient(app)


def responses(item: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "hi"}, item]}


CLAUDE = {"model": "x", "max_tokens": 2}
CASES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
    ("/v1/chat/completions", {"messages": [{"content": "x"}]}, "messages.0.role"),
    ("/v1/chat/completions", {"messages": "hi"}, "messages"),
    ("/v1/chat/completions", {}, "messages"),
    ("/v1/chat/completions", {"messages": [], "temperature": "warm"}, "temperature"),
    ("/v1/completions", {"prompt": {"a": 1}}, "prompt"),
    ("/v1/responses", responses({"type": "message", "role": "user", "content": [{"type": "input_text", "text": 5}]}),
     "input.1.content.0.text"),
    ("/v1/responses", responses({"role": "user", "content": [{"type": "input_image", "image_url": 5}]}),
     "input.1.content.0.image_url"),
    ("/v1/responses", {"input": 5}, "input"),
    ("/v1/messages", {**CLAUDE, "messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
     "messages.0.content.0.text"),
)  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param"), CASES, ids=[f"{case[0]}-{case[2]}" for case in CASES])
def test_the_field_that_matters_is_named(client: TestClient, path: str, body: dict[str, Any], param: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert error["message"].startswith(param)
    assert "\n" not in error["message"]
    assert len(error["message"]) < 520
    assert (answer.json().get("type") == "error") == (path == "/v1/messages")


def test_rules_of_vllms_name_their_own_field() -> None:
    cause = VLLMValidationError("set `logprobs`", parameter="top_logprobs")
    errors = [
        {"type": "missing", "loc": ("body", "messages"), "msg": "Field required"},
        {"type": "value_error", "loc": ("body",), "msg": "Value error, x", "ctx": {"error": cause}},
    ]
    message, param = explain(errors, {})
    assert "set `logprobs`" in message
    assert param == "top_logprobs"


def test_long_texts_are_cut() -> None:
    message, param = explain([{"type": "x", "loc": ("body",), "msg": "m" * 10_000}], "text")
    assert len(message) < 520
    assert param is None
    assert explain([], None) == ("the request is not valid", None)


async def test_another_content_type_is_named() -> None:
    from fastapi.exceptions import RequestValidationError
    from starlette.requests import Request
    from vllm.entrypoints.serve.utils.api_utils import validate_json_request

    scope = {"type": "http", "headers": [(b"content-type", b"text/plain")], "path": "/v1/completions"}
    with pytest.raises(RequestValidationError) as caught:
        await validate_json_request(Request(scope))
    message, param = explain(caught.value.errors(), caught.value.body)
    assert "application/json" in message
    assert param is None
