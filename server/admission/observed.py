"""Requests whose last queries the workers keep; one more than they can keep is refused instead of left waiting."""

from __future__ import annotations

from contextlib import ExitStack

from vllm_prune.config.kv import Kv
from vllm_prune.kv.window_slots import observes
from vllm_prune.policy import Decision

from ..openai.errors import Refusal, overloaded
from .demand import Demand


class ObservedRequests:
    """Those of this process.

    Args:
        settings: the section `kv`.
        retry_after: seconds, of a 503.
    """

    def __init__(self, settings: Kv, retry_after: int) -> None:
        self.settings, self.retry_after = settings, retry_after
        self.count = 0

    def counts(self, decision: Decision | None) -> bool:
        """Whether a request with these budgets has to pass `enter`."""
        if self.settings.over_observed == "wait" or self.settings.observed_requests is None:
            return False
        return decision is not None and decision.kv is not None and observes(decision.kv)

    def enter(self, demand: Demand, exits: ExitStack) -> None:
        """Count a request until `exits` closes.

        Args:
            demand: what it needs; each choice of each of its prompts is observed by itself.
            exits: closed when the request has been answered.

        Raises:
            Refusal: 503, too many are observed now; 400, it alone has more than can ever be.
        """
        needed, most = len(demand.prompts) * demand.choices, self.settings.observed_requests
        assert most is not None
        strategy = demand.kv.strategy if demand.kv is not None else ""
        text = f"KV strategy {strategy!r} looks at the last queries, which this server keeps of {most} answers at once"
        if needed > most:
            message = f"{text}; this request has {needed}: ask for fewer, or choose a strategy that looks at none"
            raise Refusal(400, "invalid_budget", message, code="invalid_budget", param="pruning.kv.strategy")
        if self.count + needed > most:
            message = f"{text}: retry, or choose a strategy that looks at none"
            raise overloaded("observed_requests", message, self.retry_after)
        self.count += needed
        exits.callback(self._leave, needed)

    def _leave(self, count: int) -> None:
        self.count -= count
