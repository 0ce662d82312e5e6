"""Second step: the whole body, within the limits of its size and time, before anything else looks at it."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_prune.config.admission import Admission
from vllm_prune.request import RequestContext, current

from ..lifecycle import Lifecycle
from ..openai.errors import Refusal, bad_request, overloaded
from .authenticate import BODY_METHODS, refuse_when_draining
from .paths import path_of

# A client that is refused while it sends reads the answer only when it is not cut off.
LINGER_SECONDS = 2.0
CLOSE = {"Connection": "close"}


class ClientDisconnected(Exception):
    """The client left before its request was complete."""


class BufferBody:
    """ASGI middleware; `receive` of the next step gives the body in one message.

    Args:
        app: the next step.
        settings: of the admission.
        lifecycle: counts requests whose body has arrived.
    """

    def __init__(self, app: ASGIApp, settings: Admission, lifecycle: Lifecycle) -> None:
        self.app, self.settings, self.lifecycle = app, settings, lifecycle
        self.buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body, or refuse it."""
        context = current()
        assert context is not None
        with ExitStack() as answering:
            try:
                body = await self._body(context, scope, receive) if scope["method"] in BODY_METHODS else None
                # In this order, as the drain reads the count after it has said that it began.
                self.lifecycle.enter(answering)
                refuse_when_draining(self.lifecycle, self.settings)
            except Refusal as refusal:
                await _refuse(refusal, scope, receive, send)
            except ClientDisconnected:
                pass
            else:
                await self.app(scope, receive if body is None else replay(body, receive), send)

    async def _body(self, context: RequestContext, scope: Scope, receive: Receive) -> bytes:
        """The body.

        Raises:
            Refusal: 413, 408, 415, or 503 where all bodies together are too large.
            ClientDisconnected: the client left before the end.
        """
        headers = dict(scope["headers"])
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"identity", b""):
            message = "the body is compressed (Content-Encoding), which is not supported; send it as it is"
            raise bad_request(message, None, "invalid_body", status=415)
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.settings.max_body_bytes:
            raise self._too_large()
        context.exits.callback(self._forget, context)
        seconds = self.settings.max_body_seconds
        try:
            return await asyncio.wait_for(self._read(context, receive), seconds)
        except TimeoutError:
            message = f"the body did not arrive within {seconds:g} s"
            raise Refusal(408, "body_timeout", message, code="request_timeout", headers=CLOSE) from None

    async def _read(self, context: RequestContext, receive: Receive) -> bytes:
        settings, parts = self.settings, []
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientDisconnected
            part = message.get("body", b"")
            context.body_bytes += len(part)
            self.buffered += len(part)
            if context.body_bytes > settings.max_body_bytes:
                raise self._too_large()
            if self.buffered > settings.max_total_body_bytes:
                text = "the bodies of the requests at hand are too large together"
                raise overloaded("capacity", text, settings.retry_after_seconds)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _forget(self, context: RequestContext) -> None:
        self.buffered -= context.body_bytes

    def _too_large(self) -> Refusal:
        message = f"the body is over {self.settings.max_body_bytes} bytes; send smaller media, or their addresses"
        return Refusal(413, "body_too_large", message, code="request_too_large", headers=CLOSE)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` in one message, and then what the connection gives."""
    pending = True

    async def replaying() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replaying


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    response = refusal.response(path_of(scope))
    if refusal.status not in (408, 413):
        await response(scope, receive, send)
        return
    start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
    await send(start)
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    if refusal.status == 413:
        with suppress(TimeoutError):
            await asyncio.wait_for(_drain(receive), LINGER_SECONDS)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
