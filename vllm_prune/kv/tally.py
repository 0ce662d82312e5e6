"""What eviction did to a request, on its way from the scheduler to the front end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..budget.kv import REPORT
from .group_budgets import GroupBudgets


@dataclass
class Tally:
    """What eviction did to one engine request so far.

    Attributes:
        ticket: names the HTTP request behind it.
        strategy: name of the KV strategy.
        prompt_tokens: rows cached when the prompt is complete.
        kept_tokens: rows that a compaction leaves, on average over the layers.
        evicted_tokens, freed_blocks, compactions: sums over all compactions, rows as an average over the layers.
        clamped: entries of `usage.pruning.clamped`.
        layer_groups: where there are several groups of layers, the first layer of each, the rows that it keeps, and the
            blocks that it has given back.
    """

    ticket: str
    strategy: str
    prompt_tokens: int
    kept_tokens: int
    evicted_tokens: int = 0
    freed_blocks: int = 0
    compactions: int = 0
    clamped: list[dict[str, Any]] = field(default_factory=list)

    layer_groups: list[dict[str, int]] = field(default_factory=list)

    @classmethod
    def of(cls, budgets: GroupBudgets, clamped: list[dict[str, Any]], firsts: Sequence[int]) -> Tally:
        """The tally of a request that has not been compacted yet.

        Args:
            budgets: of the request.
            clamped: entries of `usage.pruning.clamped`.
            firsts: first layer of each group of layers.
        """
        spec, prompt = budgets.spec, budgets.prompt
        groups = [
            {"first_layer": first, "kept_tokens": min(prompt, count), "freed_blocks": 0}
            for first, count in zip(firsts, budgets.counts, strict=True)
        ]
        tally = cls(spec.ticket, spec.strategy, prompt, budgets.kept_tokens, clamped=clamped)
        tally.layer_groups = groups if len(groups) > 1 else []
        return tally

    def add(self, evicted: int, freed: Sequence[int]) -> None:
        """Add one compaction.

        Args:
            evicted: rows, on average over the layers.
            freed: blocks of each group of layers.
        """
        self.compactions += 1
        self.evicted_tokens += evicted
        self.freed_blocks += sum(freed)
        for group, blocks in zip(self.layer_groups, freed, strict=False):
            group["freed_blocks"] += blocks


def attach(outputs: Iterable[Any], tallies: dict[str, Tally]) -> None:
    """Give each tally to the output of its request, and remove it from `tallies`.

    Args:
        outputs: vLLM's `EngineCoreOutput`s of one step.
        tallies: by request id; those of requests without an output stay.
    """
    for output in outputs:
        tally = tallies.pop(output.request_id, None)
        if tally is not None:
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), REPORT: asdict(tally)}
