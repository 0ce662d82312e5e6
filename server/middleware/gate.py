"""The gate that every request passes: drain, API key, tenant's limits, body, room."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_prune.config.admission import Admission
from vllm_prune.request import CURRENT, RequestContext

from ..admission.accounts import Accounts
from ..admission.estimate import Sizes, media_of, rows_held, upper_bound
from ..admission.ledger import Amount, Ledger, Reservation
from ..lifecycle import Lifecycle
from ..openai.errors import Refusal, overloaded, shutting_down

# What a probe, a scrape or a browser asks for without a key. Everything else needs one where tenants are configured.
OPEN = ("/health", "/metrics", "/ping", "/version", "/load", "/playground", "/docs", "/redoc", "/openapi.json")
# Routes that ask for their room themselves, once they know the request's budget.
BUDGETED = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
# Work of the engine, except what is over in a moment.
WORKING = ("/v1/", "/v2/", "/inference/", "/cohere/", "/invocations")
LIGHT = ("/cancel", "/tokenize", "/detokenize")
BODY_METHODS = ("POST", "PUT", "PATCH", "DELETE")
# A client that is refused while it sends reads the answer only when it is not cut off.
LINGER_SECONDS = 2.0


@dataclass
class HeldRoom:
    """Room that a request has in the ledger; implements `vllm_prune.request.Reservation`.

    Attributes:
        context: the request.
        reservation: its entry in the ledger.
        sizes: of the served model.
    """

    context: RequestContext
    reservation: Reservation
    sizes: Sizes

    def resize(self, request: Any, visual: int | None, prompts: Sequence[int]) -> None:
        """Put the true size of the prepared request in place of its bound. Raises `BudgetError`."""
        kv = self.context.decision.kv if self.context.decision is not None else None
        self.reservation.resize(visual, rows_held(request, prompts, kv, self.sizes.context))


async def admit(context: RequestContext, ledger: Ledger, amount: Amount, sizes: Sizes) -> None:
    """Wait for room. Raises `Refusal`."""
    name = context.tenant.name if context.tenant is not None else None
    context.reservation = HeldRoom(context, await ledger.admit(name, amount, context.exits), sizes)


async def admit_request(context: RequestContext, request: Any, raw_request: Request) -> None:
    """Wait for the room that a request needs at most.

    Args:
        context: the request, its budgets decided.
        request: vLLM's request model.
        raw_request: the HTTP request, whose JSON has been read.

    Raises:
        Refusal: no room.
    """
    state = raw_request.app.state.vllm_prune
    decision = context.decision
    amount = Amount(requests=1)
    if state.ledger.settings.weighs and decision is not None:
        media = media_of(await raw_request.json())
        amount = upper_bound(request, media, context.body_bytes, decision.spec, decision.kv, state.sizes)
    with context.stage("admission"):
        await admit(context, state.ledger, amount, state.sizes)


class Gate:
    """ASGI middleware.

    Args:
        app: what it guards.
        accounts: tenants, empty where there are none.
        ledger: what is in flight.
        lifecycle: whether requests are taken.
    """

    def __init__(self, app: ASGIApp, accounts: Accounts, ledger: Ledger, lifecycle: Lifecycle) -> None:
        self.app, self.accounts, self.ledger, self.lifecycle = app, accounts, ledger, lifecycle
        self.buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in, or refuse it."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] != "http" or scope["method"] == "OPTIONS" or is_open(scope):
            await self.app(scope, receive, send)
        else:
            context = CURRENT.get()
            if context is None:
                # Before the server is initialised nothing is around us.
                context = RequestContext()
                CURRENT.set(context)
            with ExitStack() as answering, context.exits:
                await self._visit(context, answering, scope, receive, send)

    async def _visit(
        self, context: RequestContext, answering: ExitStack, scope: Scope, receive: Receive, send: Send
    ) -> None:
        working = scope["method"] in BODY_METHODS
        try:
            self._let_in(context, scope, working)
            body = await self._body(context, scope, receive) if working else None
            # In this order, as the drain reads the count after it has said that it began.
            self.lifecycle.enter(answering)
            self._refuse_when_draining()
            path = path_of(scope)
            if working and path.startswith(WORKING) and path not in BUDGETED and not path.endswith(LIGHT):
                await admit(context, self.ledger, Amount(requests=1), scope["app"].state.vllm_prune.sizes)
        except Refusal as refusal:
            await _refuse(refusal, scope, receive, send)
            return
        except ClientGone:
            return
        await self.app(scope, receive if body is None else _replay(body, receive), self._sending(context, send))

    def _refuse_when_draining(self) -> None:
        if self.lifecycle.draining:
            raise shutting_down(self.ledger.settings.retry_after_seconds)

    def _let_in(self, context: RequestContext, scope: Scope, working: bool) -> None:
        self._refuse_when_draining()
        if self.accounts:
            account = self.accounts.of(scope["headers"])
            context.tenant = account.tenant
            if working:
                account.enter(context.exits)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        account = None
        try:
            self._refuse_when_draining()
            account = self.accounts.of(scope["headers"]) if self.accounts else None
        except Refusal as refusal:
            # Counts it; a socket that is not accepted gets a 403 from the HTTP server.
            refusal.response()
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": str(refusal)})
            return
        with ExitStack() as exits:
            self.lifecycle.enter(exits)
            CURRENT.set(RequestContext(tenant=account.tenant if account is not None else None))
            await self.app(scope, receive, send)

    async def _body(self, context: RequestContext, scope: Scope, receive: Receive) -> deque[Message]:
        """The whole body, as the messages that it came in.

        Raises:
            Refusal: 413, 408, or 503 where all bodies together are too large.
            ClientGone: it left before the end.
        """
        settings = self.ledger.settings
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced) > settings.max_body_bytes:
            raise _too_large(settings)
        context.exits.callback(self._forget_body, context)
        try:
            return await asyncio.wait_for(self._read(context, receive), settings.max_body_seconds)
        except TimeoutError:
            message = f"the body did not arrive within {settings.max_body_seconds:g} s"
            raise Refusal(408, "body_timeout", message, code="request_timeout", headers=CLOSE) from None

    async def _read(self, context: RequestContext, receive: Receive) -> deque[Message]:
        settings, messages = self.ledger.settings, deque[Message]()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGone
            size = len(message.get("body", b""))
            context.body_bytes += size
            self.buffered += size
            if context.body_bytes > settings.max_body_bytes:
                raise _too_large(settings)
            if self.buffered > settings.max_total_body_bytes:
                text = "the bodies of the requests at hand are too large together"
                raise overloaded("capacity", text, settings.retry_after_seconds)
            messages.append(message)
            if not message.get("more_body", False):
                return messages

    def _forget_body(self, context: RequestContext) -> None:
        self.buffered -= context.body_bytes

    def _sending(self, context: RequestContext, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (429, 503):
                # vLLM's own say nothing about when to come back.
                headers = list(message.get("headers", ()))
                if not any(name.lower() == b"retry-after" for name, _ in headers):
                    headers.append((b"retry-after", str(self.ledger.settings.retry_after_seconds).encode()))
                message = {**message, "headers": headers}
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                # Before the client can know that it is over, and ask for more.
                context.exits.close()
            await send(message)

        return sending


class ClientGone(Exception):
    """The client left before its request was complete."""


CLOSE = {"Connection": "close"}


def path_of(scope: Scope) -> str:
    """The path below the server's root path."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def is_open(scope: Scope) -> bool:
    """Whether a path is for everybody."""
    path = path_of(scope)
    return any(path == known or path.startswith(f"{known}/") for known in OPEN)


def _too_large(settings: Admission) -> Refusal:
    message = f"the body is over {settings.max_body_bytes} bytes; send smaller media, or their addresses"
    return Refusal(413, "body_too_large", message, code="request_too_large", headers=CLOSE)


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    response = refusal.response()
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


def _replay(messages: deque[Message], receive: Receive) -> Receive:
    async def replaying() -> Message:
        return messages.popleft() if messages else await receive()

    return replaying
