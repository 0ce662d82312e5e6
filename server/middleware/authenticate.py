"""First step: refuses requests while the server drains, identifies the tenant, and applies the tenant's rate limits."""

from __future__ import annotations

from contextlib import ExitStack

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_prune.config.admission import Admission
from vllm_prune.request import RequestContext, current

from ..admission.accounts import Accounts
from ..lifecycle import Lifecycle
from ..openai.errors import Refusal, shutting_down
from .paths import path_of

BODY_METHODS = ("POST", "PUT", "PATCH", "DELETE")


class Authenticate:
    """ASGI middleware.

    Args:
        app: the next step.
        sockets: the application that answers websockets, which take no further step.
        accounts: tenants, empty where there are none.
        settings: of the admission.
        lifecycle: whether requests are taken.
    """

    def __init__(
        self, app: ASGIApp, sockets: ASGIApp, accounts: Accounts, settings: Admission, lifecycle: Lifecycle
    ) -> None:
        self.app, self.sockets, self.accounts = app, sockets, accounts
        self.settings, self.lifecycle = settings, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an HTTP request on, or refuse it."""
        context = current()
        assert context is not None
        with context.exits:
            try:
                self._check(scope, context)
            except Refusal as refusal:
                await refusal.response(path_of(scope))(scope, receive, send)
                return
            await self.app(scope, receive, self._sending(context, send))

    def _check(self, scope: Scope, context: RequestContext) -> None:
        refuse_when_draining(self.lifecycle, self.settings)
        if self.accounts:
            account = self.accounts.of(scope["headers"])
            context.tenant = account.tenant
            if scope["method"] in BODY_METHODS:
                account.enter(context.exits)

    def _sending(self, context: RequestContext, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (429, 503):
                # vLLM's own say nothing about when to come back.
                headers = list(message.get("headers", ()))
                if not any(name.lower() == b"retry-after" for name, _ in headers):
                    headers.append((b"retry-after", str(self.settings.retry_after_seconds).encode()))
                message = {**message, "headers": headers}
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                # Before the client can know that the answer is complete, and send its next request.
                context.exits.close()
            await send(message)

        return sending

    async def websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a websocket on, or close it."""
        context = current()
        assert context is not None
        try:
            refuse_when_draining(self.lifecycle, self.settings)
            if self.accounts:
                context.tenant = self.accounts.of(scope["headers"]).tenant
        except Refusal as refusal:
            # Counts it; a socket that is not accepted gets a 403 from the HTTP server.
            refusal.response()
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": str(refusal)})
            return
        with ExitStack() as exits:
            self.lifecycle.enter(exits)
            await self.sockets(scope, receive, send)


def refuse_when_draining(lifecycle: Lifecycle, settings: Admission) -> None:
    """Raise `Refusal` once the server is shutting down."""
    if lifecycle.draining:
        raise shutting_down(settings.retry_after_seconds)
