"""Admission: what is in flight, what waits for room, and what is next."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field

from vllm_prune.budget.errors import BudgetError
from vllm_prune.config.admission import Admission
from vllm_prune.telemetry import metrics

from ..openai.errors import Refusal, overloaded, shutting_down


@dataclass(frozen=True)
class Amount:
    """What requests take of the server.

    Attributes:
        requests: their number.
        visual: kept visual tokens.
        rows: rows of KV cache that they will hold.
    """

    requests: int = 0
    visual: int = 0
    rows: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.requests + other.requests, self.visual + other.visual, self.rows + other.rows)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.requests - other.requests, self.visual - other.visual, self.rows - other.rows)


@dataclass
class Reservation:
    """Room that a request has, from its admission to its end."""

    ledger: Ledger
    tenant: str | None
    amount: Amount

    def resize(self, visual: int | None, rows: int) -> None:
        """Put the true size in place of the upper bound; what is freed goes to waiting requests.

        Args:
            visual: kept visual tokens; None leaves the upper bound.
            rows: rows of KV cache that will be held.

        Raises:
            BudgetError: more than fits in even when nothing else is in flight.
        """
        true = Amount(self.amount.requests, self.amount.visual if visual is None else visual, rows)
        self.ledger.refuse_what_never_fits(true)
        self.ledger.change(self.tenant, true - self.amount)
        self.amount = true

    def release(self) -> None:
        """Give everything back."""
        self.ledger.change(self.tenant, Amount() - self.amount)
        self.amount = Amount()


@dataclass
class _Waiter:
    tenant: str | None
    amount: Amount
    number: int
    turn: asyncio.Future[Reservation] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Ledger:
    """What is in flight in this process, and the queue for it.

    The next to be admitted is the oldest request of the tenant with the smallest share, a share being the largest
    part that a tenant has of any capped resource. Nobody overtakes it, so large requests do not starve.
    """

    def __init__(self, settings: Admission) -> None:
        self.settings = settings
        self.used: dict[str | None, Amount] = defaultdict(Amount)
        self.total = Amount()
        self.waiting: list[_Waiter] = []
        self._arrivals = 0

    async def admit(self, tenant: str | None, amount: Amount, exits: ExitStack) -> Reservation:
        """Room for a request until `exits` closes; waits for it when there is none.

        Args:
            tenant: whose request it is.
            amount: an upper bound of what it takes; bounds above a cap count as the cap.
            exits: closed when the request has been answered.

        Raises:
            Refusal: 503, no room in time or too many already wait.
        """
        self._arrivals += 1
        waiter = _Waiter(tenant, self._within_caps(amount), self._arrivals)
        self.waiting.append(waiter)
        self._turn()
        if not waiter.turn.done():
            self._refuse_one_over()
            await self._wait(waiter)
        reservation = waiter.turn.result()
        exits.callback(reservation.release)
        return reservation

    async def _wait(self, waiter: _Waiter) -> None:
        seconds = self.settings.max_wait_seconds
        try:
            await asyncio.wait([waiter.turn], timeout=seconds)
        except asyncio.CancelledError:
            if waiter in self.waiting:
                self._end(waiter, overloaded("wait_timeout", "the client went away", self._retry()))
            if waiter.turn.exception() is None:
                waiter.turn.result().release()
            raise
        if not waiter.turn.done():
            message = f"the server is at capacity: no room within {seconds:g} s"
            self._end(waiter, overloaded("wait_timeout", message, self._retry()))

    def refuse_waiting(self) -> None:
        """Refuse all waiting requests, as the server shuts down."""
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            waiter.turn.set_exception(shutting_down(self._retry()))
        metrics.set_waiting(0)

    def refuse_what_never_fits(self, amount: Amount) -> None:
        """Raise `BudgetError` for more than a cap."""
        for name, needed, cap, param in (
            ("visual tokens", amount.visual, self.settings.max_inflight_visual_tokens, "pruning.visual"),
            ("rows of KV cache", amount.rows, self.settings.max_inflight_kv_rows, "pruning.kv"),
        ):
            if cap is not None and needed > cap:
                text = f"the request needs {needed} {name}; this server admits at most {cap} at once"
                raise BudgetError(f"{text}: use a smaller budget", param)

    def change(self, tenant: str | None, by: Amount) -> None:
        """Add a difference, and admit what now fits."""
        self.total += by
        self.used[tenant] += by
        if self.used[tenant] == Amount():
            del self.used[tenant]
        self._turn()

    def _caps(self) -> Amount:
        settings = self.settings
        unbound = 1 << 62
        return Amount(
            settings.max_inflight_requests or unbound,
            settings.max_inflight_visual_tokens or unbound,
            settings.max_inflight_kv_rows or unbound,
        )

    def _within_caps(self, amount: Amount) -> Amount:
        caps = self._caps()
        return Amount(amount.requests, min(amount.visual, caps.visual), min(amount.rows, caps.rows))

    def _fits(self, amount: Amount) -> bool:
        after, caps = self.total + amount, self._caps()
        return after.requests <= caps.requests and after.visual <= caps.visual and after.rows <= caps.rows

    def _share(self, tenant: str | None) -> float:
        used, caps = self.used.get(tenant, Amount()), self._caps()
        return max(used.requests / caps.requests, used.visual / caps.visual, used.rows / caps.rows)

    def _turn(self) -> None:
        while self.waiting:
            first = min(self.waiting, key=lambda waiter: (self._share(waiter.tenant), waiter.number))
            if not self._fits(first.amount):
                break
            self.waiting.remove(first)
            self.total += first.amount
            self.used[first.tenant] += first.amount
            first.turn.set_result(Reservation(self, first.tenant, first.amount))
        metrics.set_waiting(len(self.waiting))

    def _refuse_one_over(self) -> None:
        """With one too many in the queue, refuse the newest of the tenant that has and wants most."""
        if len(self.waiting) <= self.settings.max_waiting:
            return
        queued: dict[str | None, int] = defaultdict(int)
        for waiter in self.waiting:
            queued[waiter.tenant] += 1
        last = max(self.waiting, key=lambda one: (self._share(one.tenant), queued[one.tenant], one.number))
        self._end(last, overloaded("capacity", "the server is at capacity and its queue is full", self._retry()))

    def _end(self, waiter: _Waiter, refusal: Refusal) -> None:
        self.waiting.remove(waiter)
        waiter.turn.set_exception(refusal)
        self._turn()

    def _retry(self) -> int:
        return self.settings.retry_after_seconds
