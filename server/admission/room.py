"""Room that one HTTP request holds while its prompts are prepared and answered."""

from __future__ import annotations

from collections.abc import Sequence

from .demand import Demand
from .ledger import Amount, Reservation


class HeldRoom:
    """Implements `vllm_prune.request.Reservation` on an entry of the ledger.

    Args:
        reservation: the entry.
        demand: the upper bound that it was admitted with.
    """

    def __init__(self, reservation: Reservation, demand: Demand) -> None:
        self.reservation, self.demand = reservation, demand
        self.unprepared = list(demand.prompts)
        self.visual = self.rows = 0

    def resize(self, visual: int | None, prompts: Sequence[int]) -> None:
        """Put the true size of prompts in place of their bounds.

        A request with several conversations prepares them one after the other. One whose prompts are all prepared
        and that prepares another, as after a call of a built-in tool, holds only the latest.

        Args:
            visual: kept visual tokens of these prompts; None leaves their bounds.
            prompts: tokens of each, kept visual tokens included.

        Raises:
            BudgetError: more than this server ever admits.
        """
        if not self.unprepared:
            self.visual = self.rows = 0
        bounds, self.unprepared = self.unprepared[: len(prompts)], self.unprepared[len(prompts) :]
        self.visual += sum(bound.visual for bound in bounds) if visual is None else visual
        self.rows += sum(self.demand.rows(prompt) for prompt in prompts)
        rest = self.demand.of(self.unprepared)
        self.reservation.resize(self.visual + rest.visual, self.rows + rest.rows)

    def amount(self) -> Amount:
        """What is held."""
        return self.reservation.amount
