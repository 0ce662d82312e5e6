"""Fifth step: waits until the request fits into the limits on requests and tokens in flight."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_prune.request import RequestContext, current

from ..admission.demand import demand_of
from ..admission.ledger import Amount
from ..admission.room import HeldRoom
from ..openai.errors import Refusal
from ..openai.routes import is_admitted, route_of
from .authenticate import BODY_METHODS
from .paths import path_of


class Admit:
    """ASGI middleware.

    Args:
        app: the next step.
        state: the server's `ServerState`.
    """

    def __init__(self, app: ASGIApp, state: Any) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on once there is room for it, or refuse it."""
        context, path = current(), path_of(scope)
        assert context is not None
        if scope["method"] in BODY_METHODS and is_admitted(path):
            try:
                with context.stage("admission"):
                    await self._admit(context, path)
            except Refusal as refusal:
                await refusal.response(path)(scope, receive, send)
                return
            if route_of(path).honours:
                # Until the answer has ended, however that comes: also a stream that never starts.
                context.start_answer()
        context.document = None
        await self.app(scope, receive, send)

    async def _admit(self, context: RequestContext, path: str) -> None:
        """Wait for room. Raises `Refusal`."""
        ledger, tenant = self.state.ledger, context.tenant
        name = tenant.name if tenant is not None else None
        demand = None
        observed = self.state.observed.counts(context.decision)
        if (ledger.settings.weighs or observed) and context.document is not None:
            demand = demand_of(context.document, context.body_bytes, route_of(path), context.decision, self.state.sizes)
        if observed and demand is not None:
            self.state.observed.enter(demand, context.exits)
        amount = demand.amount() if demand is not None else Amount(requests=1)
        reservation = await ledger.admit(name, amount, context.exits)
        context.reservation = HeldRoom(reservation, demand) if demand is not None else None
