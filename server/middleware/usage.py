"""The `pruning` field on vLLM's routes: validated before, reported after; the route itself stays vLLM's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from vllm.exceptions import VLLMClientError

from vllm_prune.budget.errors import BudgetError
from vllm_prune.config.load import PruneConfig
from vllm_prune.policy import decide
from vllm_prune.request import RequestContext, current, reject
from vllm_prune.telemetry import metrics

from ..openai.errors import Refusal
from ..openai.response_inputs import make_readable
from .gate import admit_request

Route = Callable[[Any, Request], Awaitable[Response | None]]


def error_response(message: str, param: str | None) -> JSONResponse:
    """400 with an OpenAI error body."""
    error = {"message": message, "type": "BadRequestError", "param": param, "code": 400}
    return JSONResponse({"error": error}, status_code=400)


async def answer(config: PruneConfig, route: Route, request: Any, raw_request: Request) -> Response:
    """Run one of vLLM's routes under the request's budget.

    Args:
        config: the operator's configuration as it applies to the request's tenant.
        route: vLLM's route function, `(request, raw_request) -> response`.
        request: vLLM's request model; unknown fields such as `pruning` are kept by it as extras.
        raw_request: the HTTP request.
    """
    context = current()
    assert context is not None, "the gate sets a context for every request"
    try:
        preset = _preset_of_model(request, raw_request)
        _describe(context, request, raw_request)
        decision = decide(config, _take_field(request), preset)
        context.decide(decision)
    except BudgetError as error:
        reject("invalid_budget")
        return error_response(str(error), error.param)
    if (unreadable := make_readable(request)) is not None:
        return error_response(*unreadable)
    if decision.spec is not None and not raw_request.app.state.vllm_prune.verified:
        reject("not_active")
        refusal = raw_request.app.state.vllm_prune.findings[0].error()
        return error_response(str(refusal), refusal.param)
    if decision.kv is not None and (findings := raw_request.app.state.vllm_prune.kv_findings):
        reject("not_active")
        metrics.count_kv_skipped(findings[0].cause)
        refusal = findings[0].error()
        return error_response(str(refusal), refusal.param)
    context.media_param = "input" if "input" in type(request).model_fields else "messages"
    try:
        await admit_request(context, request, raw_request)
    except Refusal as refusal:
        return refusal.response()
    context.start_answer()
    response: Response | None = await route(request, raw_request)
    if response is None:
        # vLLM has cancelled it, as the client has left; nobody reads this.
        return Response(status_code=499)
    if isinstance(response, StreamingResponse):
        response.body_iterator = _annotated(response.body_iterator, context)
        return response
    return _with_usage(response, context)


def _describe(context: RequestContext, request: Any, raw_request: Request) -> None:
    """Note what a log line may say of a request, and give vLLM's request the id of ours where the client sent none."""
    models = raw_request.app.state.openai_serving_models
    if request.model is None or models.is_base_model(request.model) or request.model in models.lora_requests:
        context.model = request.model or models.model_name()
    context.stream = bool(getattr(request, "stream", False))
    named = "x-request-id" in raw_request.headers or "request_id" in request.model_fields_set
    if not named and type(request).__name__ != "ResponsesRequest":
        request.request_id = context.request_id


def _take_field(request: Any) -> object:
    extras = request.model_extra or {}
    return extras.pop("pruning", None)


def _preset_of_model(request: Any, raw_request: Request) -> str | None:
    """Split `MODEL@NAME`, unless a model of exactly that name is served."""
    name = request.model
    models = raw_request.app.state.openai_serving_models
    if not name or "@" not in name or models.is_base_model(name) or name in models.lora_requests:
        return None
    request.model, _, preset = name.rpartition("@")
    return preset


def _with_usage(response: Response, context: RequestContext) -> Response:
    body = json.loads(bytes(response.body))
    usage = _usage_of(body)
    if usage is None:
        return response
    usage["pruning"] = context.usage()
    headers = {k: v for k, v in response.headers.items() if k not in ("content-length", "content-type")}
    return JSONResponse(body, status_code=response.status_code, headers=headers)


def _usage_of(body: Any) -> dict[str, Any] | None:
    """The usage object of an answer, of a chunk, or of the response inside an event."""
    if not isinstance(body, dict):
        return None
    usage = body.get("usage")
    if usage is None and isinstance(body.get("response"), dict):
        usage = body["response"].get("usage")
    return usage if isinstance(usage, dict) else None


async def _annotated(chunks: Any, context: RequestContext) -> AsyncIterator[str | bytes]:
    number = 0
    try:
        async for chunk in chunks:
            yield _annotate_events(chunk, context) if '"usage"' in _text(chunk) else chunk
            number += 1
    except (ValueError, VLLMClientError) as error:
        # vLLM's responses find some faults of a request only when their stream has begun, and would break it off.
        body = {"type": "error", "code": "invalid_request_error", "message": str(error), "param": None}
        yield f"event: error\ndata: {json.dumps({**body, 'sequence_number': number}, ensure_ascii=False)}\n\n"


def _annotate_events(chunk: str | bytes, context: RequestContext) -> str:
    lines = []
    for line in _text(chunk).split("\n"):
        if line.startswith("data: {"):
            body = json.loads(line[6:])
            usage = _usage_of(body)
            if usage is not None:
                usage["pruning"] = context.usage()
                line = "data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        lines.append(line)
    return "\n".join(lines)


def _text(chunk: str | bytes) -> str:
    return chunk if isinstance(chunk, str) else chunk.decode()
