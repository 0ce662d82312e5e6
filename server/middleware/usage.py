"""Last step: `usage.pruning` in answers, JSON and streams alike, and faults that are noticed within a stream."""

from __future__ import annotations

import json
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.exceptions import VLLMClientError

from vllm_prune.request import RequestContext, current
from vllm_prune.vllm_compat.worker_calls import fetch_kept

from ..openai.routes import USAGE_HEADER, Usage, route_of
from .authenticate import BODY_METHODS
from .paths import path_of


class ReportUsage:
    """ASGI middleware.

    Args:
        app: vLLM's application.
        state: what the server knows of itself, a `ServerState`.
    """

    def __init__(self, app: ASGIApp, state: Any) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, with the report where its route has one."""
        context, where = current(), route_of(path_of(scope)).usage
        if where is None or context is None or context.decision is None or scope["method"] not in BODY_METHODS:
            await self.app(scope, receive, send)
            return
        answer = Answer(context, where, send, self.state)
        try:
            await self.app(scope, receive, answer.send)
        except Exception as error:
            fault = _client_fault(error)
            if fault is None or not await answer.end_with_error(fault):
                raise


class Answer:
    """An answer on its way out.

    Args:
        context: the request.
        where: where the report goes.
        send: of the step before.
        state: what the server knows of itself, a `ServerState`.
    """

    def __init__(self, context: RequestContext, where: Usage, send: Send, state: Any) -> None:
        self.context, self.where, self._send, self.state = context, where, send, state
        self._start: Message | None = None
        self._kind = b""
        self._pending = b""
        self._events = 0
        self._streaming = False

    async def send(self, message: Message) -> None:
        """Take a message of the application's."""
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] != "http.response.body" or not (self._streaming or self._start):
            await self._send(message)
        elif self._streaming:
            await self._stream(message)
        else:
            await self._collect(message)

    async def _begin(self, message: Message) -> None:
        headers = {name.lower(): value for name, value in message.get("headers", ())}
        self._kind = headers.get(b"content-type", b"").partition(b";")[0].strip()
        if message["status"] == 200 and self._kind == b"application/json" and self.where != "header":
            self._start = message
            return
        self._streaming = message["status"] == 200 and self._kind == b"text/event-stream"
        if message["status"] == 200 and self.where == "header":
            report = json.dumps(self.context.usage(), separators=(",", ":")).encode()
            message = {**message, "headers": [*message.get("headers", ()), (USAGE_HEADER, report)]}
        await self._send(message)

    async def _collect(self, message: Message) -> None:
        """JSON: held back until it is complete."""
        self._pending += message.get("body", b"")
        if message.get("more_body", False):
            return
        assert self._start is not None
        start, self._start = self._start, None
        body = await self._with_report(self._pending)
        headers = [pair for pair in start.get("headers", ()) if pair[0].lower() != b"content-length"]
        await self._send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _with_report(self, body: bytes) -> bytes:
        if not body:
            # To a client that has left, vLLM answers nothing.
            return body
        document = json.loads(body)
        if self.where == "top":
            decision = self.context.decision
            if not isinstance(document, dict) or decision is None or (decision.spec is None and decision.kv is None):
                return body
            document["pruning"] = self.context.usage()
        elif not await self._add_to_usage(document):
            return body
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

    async def _add_to_usage(self, document: Any) -> bool:
        usages = usages_of(document)
        if usages:
            # By the first token the media have been encoded.
            await fetch_kept(self.state.engine_client, self.context)
        for usage in usages:
            usage["pruning"] = self.context.usage(items=True)
        return bool(usages)

    async def _stream(self, message: Message) -> None:
        """Events: whole ones at once, the rest with the next chunk."""
        data, more = self._pending + message.get("body", b""), message.get("more_body", False)
        end = data.rfind(b"\n\n") + 2 if more else len(data)
        if more and end < 2:
            self._pending = data
            return
        whole, self._pending = data[:end], data[end:]
        self._events += whole.count(b"\n\n")
        await self._send({"type": "http.response.body", "body": await self._annotated(whole), "more_body": more})
        self._streaming = more

    async def _annotated(self, events: bytes) -> bytes:
        if b'"usage"' not in events:
            return events
        return b"\n".join([await self._annotated_line(line) for line in events.split(b"\n")])

    async def _annotated_line(self, line: bytes) -> bytes:
        if not line.startswith(b"data: {") or b'"usage"' not in line:
            return line
        document = json.loads(line[6:])
        if not await self._add_to_usage(document):
            return line
        return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

    async def end_with_error(self, fault: Exception) -> bool:
        """End a stream that has begun with an event that says what is wrong; returns whether there is one."""
        if not self._streaming:
            return False
        self._streaming = False
        error = {"type": "error", "code": "invalid_request_error", "message": str(fault), "param": None}
        data = json.dumps({**error, "sequence_number": self._events}, ensure_ascii=False)
        # Half an event that may be pending cannot be read.
        body = f"event: error\ndata: {data}\n\n".encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        return True


def usages_of(document: Any) -> list[dict[str, Any]]:
    """The usage objects of an answer, of a chunk, or of what is inside an event."""
    if not isinstance(document, dict):
        return []
    # OpenAI's responses, Anthropic's message_start, Cohere's message-end.
    holders = (document, *(document.get(name) for name in ("response", "message", "delta")))
    usages = (holder.get("usage") for holder in holders if isinstance(holder, dict))
    return [usage for usage in usages if isinstance(usage, dict)]


def _client_fault(error: BaseException | None) -> Exception | None:
    """What a client did wrong, when that is why a stream breaks off.

    vLLM's responses find some faults of a request only when their stream has begun. Starlette then raises another
    error from the one that it has a handler for.
    """
    while error is not None:
        if isinstance(error, ValueError | VLLMClientError):
            return error
        error = error.__cause__
    return None
