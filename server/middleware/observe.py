"""Middleware around everything else: the request's id, its log line and its span."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.logger import init_logger

from vllm_prune.telemetry.request_record import RECORD, Record, forget

from ..telemetry import logs, request_id, tracing

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
        own_id, headers = request_id.settle(scope["headers"])
        record = Record(own_id, scope["method"], route=known_route(scope))
        told = not scope["path"].startswith(QUIET)
        span = None
        if self.spans and told:
            span, headers = tracing.begin(record, headers)
        # A copy, as the server that called us goes on to use its own.
        inner = {**scope, "headers": headers}
        token = RECORD.set(record)
        try:
            await self.app(inner, receive, _watched(send, record))
        except BaseException:
            record.status = record.status or 500
            raise
        finally:
            RECORD.reset(token)
            record.ended = time.perf_counter()
            if route := getattr(inner.get("route"), "path", None):
                record.route = route
            self._close(record, span, self.lines and told)

    def _close(self, record: Record, span: Any, line: bool) -> None:
        if not line and span is None:
            forget(record)
        elif record.key is not None and record.complete and record.status == 200 and not record.engine:
            asyncio.get_running_loop().call_later(GRACE_SECONDS, self._tell, record, span, line)
        else:
            self._tell(record, span, line)

    def _tell(self, record: Record, span: Any, line: bool) -> None:
        forget(record)
        try:
            if line:
                logs.write(record)
            if span is not None:
                tracing.end(record, span)
        except Exception:
            # The answer has gone out; a defect here must not end the connection.
            logger.exception("request %s could not be logged", record.id)


def install(app: FastAPI, lines: bool, spans: bool) -> None:
    """Wrap the application's whole stack, which vLLM has built by the time that our state is initialised.

    `add_middleware` before that would put us inside vLLM's authentication.
    """
    app.middleware_stack = Observe(app.middleware_stack or app.build_middleware_stack(), lines, spans)


def known_route(scope: Scope) -> str | None:
    """The path of a request when it is a route's; anything else is text of the client's."""
    routes = getattr(scope.get("app"), "routes", ())
    return scope["path"] if any(getattr(route, "path", None) == scope["path"] for route in routes) else None


def _watched(send: Send, record: Record) -> Send:
    async def watched(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            message = {**message, "headers": request_id.stamp(message["headers"], record.id)}
        elif message["type"] == "http.response.body" and record.first_byte is None and message.get("body"):
            record.first_byte = time.perf_counter()
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            record.complete = True

    return watched
