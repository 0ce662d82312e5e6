"""The steps that every request takes before vLLM's application sees it, in their order."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_prune.request import CURRENT, RequestContext

from ..admission.accounts import Accounts
from .admit import Admit
from .authenticate import Authenticate
from .body import BufferBody
from .decide import Decide
from .faults import Faults
from .paths import is_open
from .protocol import answer_head_like_get
from .usage import ReportUsage


class Chain:
    """ASGI middleware: authenticate, read the body, decide on the budget, admit, report usage.

    Args:
        app: vLLM's application.
        accounts: tenants, empty where there are none.
        state: the server's `ServerState`.
    """

    def __init__(self, app: ASGIApp, accounts: Accounts, state: Any) -> None:
        self.app = app
        decided = Decide(Admit(ReportUsage(app, state), state), state)
        buffered = BufferBody(Faults(decided, state), state.ledger.settings, state.lifecycle)
        self.authenticate = Authenticate(buffered, app, accounts, state.ledger.settings, state.lifecycle)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        context = CURRENT.get() if scope["type"] == "http" else None
        if context is None:
            # A connection's next request may start in the context of the one before.
            CURRENT.set(RequestContext())
        if scope["type"] == "websocket":
            await self.authenticate.websocket(scope, receive, send)
            return
        scope, send = answer_head_like_get(scope, send)
        if scope["method"] == "OPTIONS" or is_open(scope):
            await self.app(scope, receive, send)
        else:
            await self.authenticate(scope, receive, send)
