"""The gate that every request passes: drain, API key, tenant's limits, body, room."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_prune.budget.kv import KvSpec
from vllm_prune.config.admission import Admission
from vllm_prune.policy import SETTLE, TENANT, Decision
from vllm_prune.telemetry.request_record import stage

from ..admission.accounts import Account, Accounts
from ..admission.estimate import Sizes, media_of, rows_held, upper_bound
from ..admission.ledger import Amount, Ledger, Reservation
from ..lifecycle import Lifecycle
from ..openai.errors import Refusal, overloaded, shutting_down

KEY = "vllm_prune.visit"
"""Key of the request's `Visit` in its ASGI scope."""

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
class Visit:
    """One HTTP request inside the gate.

    Attributes:
        account: its tenant's, None on servers without tenants.
        ledger: where it asks for room.
        exits: closed when it has been answered, however that ends.
        body_bytes: length of its body.
        sizes: of the served model.
    """

    account: Account | None
    ledger: Ledger
    sizes: Sizes
    exits: ExitStack = field(default_factory=ExitStack)
    body_bytes: int = 0
    reservation: Reservation | None = None

    async def admit(self, amount: Amount) -> None:
        """Wait for room. Raises `Refusal`."""
        name = self.account.tenant.name if self.account is not None else None
        self.reservation = await self.ledger.admit(name, amount, self.exits)

    async def admit_request(self, request: Any, raw_request: Request, decision: Decision) -> None:
        """Wait for the room that a request needs at most.

        Args:
            request: vLLM's request model.
            raw_request: the HTTP request, whose JSON has been read.
            decision: its budgets.

        Raises:
            Refusal: no room.
        """
        amount = Amount(requests=1)
        if self.ledger.settings.weighs:
            media = media_of(await raw_request.json())
            amount = upper_bound(request, media, self.body_bytes, decision.spec, decision.kv, self.sizes)
        with stage("admission"):
            await self.admit(amount)

    def settle(self, request: Any, visual: int | None, prompts: Sequence[int]) -> None:
        """Put the true size of the prepared request in place of its bound. Raises `BudgetError`."""
        if self.reservation is not None:
            kv = KvSpec.of(getattr(request, "vllm_xargs", None))
            self.reservation.settle(visual, rows_held(request, prompts, kv, self.sizes.context))


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
            visit = Visit(None, self.ledger, scope["app"].state.vllm_prune.sizes)
            with ExitStack() as answering, visit.exits:
                await self._visit(visit, answering, scope, receive, send)

    async def _visit(self, visit: Visit, answering: ExitStack, scope: Scope, receive: Receive, send: Send) -> None:
        working = scope["method"] in BODY_METHODS
        try:
            self._let_in(visit, scope, working)
            body = await self._body(visit, scope, receive) if working else None
            # In this order, as the drain reads the count after it has said that it began.
            self.lifecycle.enter(answering)
            self._refuse_when_draining()
            path = path_of(scope)
            if working and path.startswith(WORKING) and path not in BUDGETED and not path.endswith(LIGHT):
                await visit.admit(Amount(requests=1))
        except Refusal as refusal:
            await _refuse(refusal, scope, receive, send)
            return
        except ClientGone:
            return
        scope[KEY] = visit
        # Set for every request: a connection's next one may start in the context of the one before.
        TENANT.set(visit.account.tenant if visit.account is not None else None)
        SETTLE.set(visit.settle)
        await self.app(scope, receive if body is None else _replay(body, receive), self._sending(visit, send))

    def _refuse_when_draining(self) -> None:
        if self.lifecycle.draining:
            raise shutting_down(self.ledger.settings.retry_after_seconds)

    def _let_in(self, visit: Visit, scope: Scope, working: bool) -> None:
        self._refuse_when_draining()
        if self.accounts:
            visit.account = self.accounts.of(scope["headers"])
            if working:
                visit.account.enter(visit.exits)

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
            TENANT.set(account.tenant if account is not None else None)
            SETTLE.set(None)
            await self.app(scope, receive, send)

    async def _body(self, visit: Visit, scope: Scope, receive: Receive) -> deque[Message]:
        """The whole body, as the messages that it came in.

        Raises:
            Refusal: 413, 408, or 503 where all bodies together are too large.
            ClientGone: it left before the end.
        """
        settings = self.ledger.settings
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced) > settings.max_body_bytes:
            raise _too_large(settings)
        visit.exits.callback(self._forget_body, visit)
        try:
            return await asyncio.wait_for(self._read(visit, receive), settings.max_body_seconds)
        except asyncio.TimeoutError:
            message = f"the body did not arrive within {settings.max_body_seconds:g} s"
            raise Refusal(408, "body_timeout", message, code="request_timeout", headers=CLOSE) from None

    async def _read(self, visit: Visit, receive: Receive) -> deque[Message]:
        settings, messages = self.ledger.settings, deque[Message]()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGone
            size = len(message.get("body", b""))
            visit.body_bytes += size
            self.buffered += size
            if visit.body_bytes > settings.max_body_bytes:
                raise _too_large(settings)
            if self.buffered > settings.max_total_body_bytes:
                text = "the bodies of the requests at hand are too large together"
                raise overloaded("capacity", text, settings.retry_after_seconds)
            messages.append(message)
            if not message.get("more_body", False):
                return messages

    def _forget_body(self, visit: Visit) -> None:
        self.buffered -= visit.body_bytes

    def _sending(self, visit: Visit, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (429, 503):
                # vLLM's own say nothing about when to come back.
                headers = list(message.get("headers", ()))
                if not any(name.lower() == b"retry-after" for name, _ in headers):
                    headers.append((b"retry-after", str(self.ledger.settings.retry_after_seconds).encode()))
                message = {**message, "headers": headers}
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                # Before the client can know that it is over, and ask for more.
                visit.exits.close()
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
        with suppress(asyncio.TimeoutError):
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
