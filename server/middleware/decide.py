"""Fourth step: decides the budget of a request, once, from its body, before vLLM's routing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_prune.budget.errors import BudgetError, Finding
from vllm_prune.policy import Decision, config_for, decide, requested_parts
from vllm_prune.request import RequestContext, current
from vllm_prune.support.choices import settled
from vllm_prune.support.kv import beam_search
from vllm_prune.telemetry import metrics

from ..openai import documents, forms
from ..openai.errors import Refusal, bad_request
from ..openai.field import RequestedBudget, take_budget
from ..openai.null_detail import drop_null_details
from ..openai.response_inputs import normalise_inputs
from ..openai.routes import Route, route_of
from ..telemetry.request_id import HEADER
from .authenticate import BODY_METHODS
from .body import replay
from .paths import path_of


class Decide:
    """ASGI middleware; sets `decision` in the request's context, and rewrites its body where vLLM needs that.

    Args:
        app: the next step.
        state: the server's `ServerState`.
    """

    def __init__(self, app: ASGIApp, state: Any) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["method"] not in BODY_METHODS:
            await self.app(scope, receive, send)
            return
        context = current()
        assert context is not None
        body = (await receive())["body"]
        path = path_of(scope)
        try:
            rewritten = await self._decide(context, scope, path, body)
        except Refusal as refusal:
            await refusal.response(path)(scope, receive, send)
            return
        if rewritten is not None:
            body = rewritten
            scope = {**scope, "headers": _with_length(scope["headers"], len(body))}
        await self.app(scope, replay(body, receive), send)

    async def _decide(self, context: RequestContext, scope: Scope, path: str, body: bytes) -> bytes | None:
        """Decide; returns the body for vLLM where it is another. Raises `Refusal`."""
        route, kind = route_of(path), _content_type(scope)
        if route.form:
            if kind not in (b"multipart/form-data", b"application/x-www-form-urlencoded"):
                return None
            document, rewritten = await forms.fields_of(scope, replay(body, _nothing)), False
        elif kind == b"application/json" and body:
            document = documents.parse(body)
            if not isinstance(document, dict):
                return None
            rewritten = _normalise_inputs(path, document)
        else:
            return None
        try:
            requested = take_budget(document, lambda name: _is_served(scope, name))
            self._set_decision(context, route, document, requested)
        except BudgetError as error:
            raise bad_request(str(error), error.param, "invalid_budget") from None
        context.document = document
        _describe(context, scope, route, document)
        return documents.dump(document) if (rewritten or requested.rewritten) and not route.form else None

    def _set_decision(
        self, context: RequestContext, route: Route, document: dict[str, Any], requested: RequestedBudget
    ) -> None:
        """Set the context's decision. Raises `BudgetError` or `Refusal`."""
        config = config_for(context.tenant)
        if not route.honours:
            if requested.present:
                raise BudgetError("this route cannot honour a pruning budget; drop it", _param(requested))
            return
        decision = decide(config, requested.field, requested.preset)
        parts = requested_parts(config, requested.field, requested.preset)
        decision = _limited_to_route(decision, route, document, parts)
        if (client := self.state.engine_client) is not None:
            decision = settled(decision, client.vllm_config)
        if (decision.spec is not None or decision.return_kept) and not self.state.verified:
            raise _not_active(self.state.findings[0])
        if decision.kv is not None and (findings := self.state.kv_findings):
            metrics.count_kv_skipped(findings[0].cause)
            raise _not_active(findings[0])
        if decision.kv is not None and document.get("use_beam_search"):
            metrics.count_kv_skipped("beam_search")
            raise beam_search().error()
        context.decide(decision)
        texts = "prompt" in route.prompts and "prompt" in document and "messages" not in document
        context.media_param = "prompt" if texts else route.media_param


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _limited_to_route(
    decision: Decision, route: Route, document: dict[str, Any], requested: frozenset[str]
) -> Decision:
    """The parts of a decision that the route can honour. Raises `BudgetError` for others that the request names."""
    # Prompts that come as token ids have been rendered, with their budget, by another request.
    tokens_only = route.rendered and "token_ids" in document and not document.get("content_parts")
    visual = route.visual and not tokens_only
    if not visual and decision.spec is not None:
        if "visual" in requested:
            text = "this request holds no media that could be pruned: a visual budget belongs to the request that "
            raise BudgetError(f"{text}prepares them", "pruning.visual")
        decision = replace(decision, spec=None)
    if not route.kv and decision.kv is not None:
        if "kv" in requested:
            text = "nothing is decoded here: a KV budget belongs to the request that generates"
            raise BudgetError(text, "pruning.kv")
        decision = replace(decision, kv=None)
    if decision.return_kept and not (visual and route.generates):
        if "visual" in requested:
            text = "no media are encoded here, so that nothing is kept yet; POST /v1/pruning/preview encodes them"
            raise BudgetError(text, "pruning.visual.return_kept")
        decision = replace(decision, return_kept=False)
    return decision


def _not_active(finding: Finding) -> Refusal:
    error = finding.error()
    return bad_request(str(error), error.param, "not_active")


def _normalise_inputs(path: str, document: dict[str, Any]) -> bool:
    """Rewrite what vLLM refuses or breaks on without need; returns whether anything was. Raises `Refusal`."""
    rewritten = drop_null_details(document)
    if path in ("/v1/responses", "/v1/responses/render"):
        rewritten |= normalise_inputs(document)
    return rewritten


def _param(requested: RequestedBudget) -> str:
    return "model" if requested.field is None else "pruning"


def _content_type(scope: Scope) -> bytes:
    # Of a header that is repeated vLLM's routes read the first one.
    value = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return bytes(value).partition(b";")[0].strip().lower()


def _models(scope: Scope) -> Any:
    return getattr(scope["app"].state, "openai_serving_models", None)


def _is_served(scope: Scope, name: str) -> bool:
    models = _models(scope)
    return models is not None and (models.is_base_model(name) or name in models.lora_requests)


def _describe(context: RequestContext, scope: Scope, route: Route, document: dict[str, Any]) -> None:
    """Note what a log line may say, and have vLLM make its ids from the request's, so that no two are equal."""
    name = document.get("model")
    if route.honours and (name is None or (isinstance(name, str) and _is_served(scope, name))):
        models = _models(scope)
        context.model = name or (models.model_name() if models is not None else None)
    context.stream = document.get("stream") is True
    others = [pair for pair in scope["headers"] if pair[0] != HEADER]
    named = isinstance(document.get("request_id"), str) and len(others) == len(scope["headers"])
    if route.honours and route.id_from_header and not named and context.request_id:
        scope["headers"] = [*others, (HEADER, context.engine_id().encode())]


def _with_length(headers: Any, length: int) -> list[tuple[bytes, bytes]]:
    kept = [pair for pair in headers if pair[0] != b"content-length"]
    return [*kept, (b"content-length", str(length).encode())]
