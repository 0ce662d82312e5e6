"""Middleware around everything else: the request's id, its log line and its span."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.logger import init_logger

from vllm_prune.request import CURRENT, RequestContext

from ..telemetry import logs, request_id, tracing
from .protocol import without_chunks

logger = init_logger("vllm.vllm_prune")
# Probes and scrapes would drown the rest.
QUIET = ("/health", "/metrics", "/ping", "/load", "/version")
# With more than one chunk of outputs in a step, vLLM hands out its statistics after the outputs.
GRACE_SECONDS = 0.05


class Observe:
    """ASGI middleware; has to be the outermost, so that refusals of the others are seen, too.

    Args:
        app: what it wraps.
        lines: write a log line per request.
        spans: export a span per request.
    """

    def __init__(self, app: ASGIApp, lines: bool, spans: bool) -> None:
        self.app, self.lines, self.spans = app, lines, spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        resolved_id, headers = request_id.resolve_request_id(scope["headers"])
        context = RequestContext(request_id=resolved_id, method=scope["method"], route=known_route(scope))
        reported = not scope["path"].startswith(QUIET)
        span = None
        if self.spans and reported:
            span, headers = tracing.begin(context, headers)
        # A copy, as the server that called us goes on to use its own.
        inner = {**scope, "headers": headers}
        token = CURRENT.set(context)
        try:
            await self.app(inner, receive, _watched(without_chunks(scope, send), context))
        except BaseException:
            context.status = context.status or 500
            raise
        finally:
            CURRENT.reset(token)
            context.ended = time.perf_counter()
            if route := getattr(inner.get("route"), "path", None):
                context.route = route
            self._close(context, span, self.lines and reported)

    def _close(self, context: RequestContext, span: Any, line: bool) -> None:
        if not line and span is None:
            context.forget_engine_requests()
        elif context.engine_requests and context.complete and context.status == 200 and not context.engine:
            asyncio.get_running_loop().call_later(GRACE_SECONDS, self._report, context, span, line)
        else:
            self._report(context, span, line)

    def _report(self, context: RequestContext, span: Any, line: bool) -> None:
        context.forget_engine_requests()
        try:
            if line:
                logs.write(context)
            if span is not None:
                tracing.end(context, span)
        except Exception:
            # The answer has gone out; a defect here must not end the connection.
            logger.exception("request %s could not be logged", context.request_id)


def install(app: FastAPI, lines: bool, spans: bool) -> None:
    """Wrap the application's whole stack, which vLLM has built by the time that our state is initialised.

    `add_middleware` before that would put us inside vLLM's authentication.
    """
    app.middleware_stack = Observe(app.middleware_stack or app.build_middleware_stack(), lines, spans)


def known_route(scope: Scope) -> str | None:
    """The path of a request when it is a route's; anything else is text of the client's."""
    routes = getattr(scope.get("app"), "routes", ())
    return scope["path"] if any(getattr(route, "path", None) == scope["path"] for route in routes) else None


def _watched(send: Send, context: RequestContext) -> Send:
    async def watched(message: Message) -> None:
        if message["type"] == "http.response.start":
            context.status = message["status"]
            message = {**message, "headers": request_id.stamp(message["headers"], context.request_id)}
        elif message["type"] == "http.response.body" and context.first_byte is None and message.get("body"):
            context.first_byte = time.perf_counter()
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            context.complete = True

    return watched
