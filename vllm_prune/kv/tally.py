"""What eviction did to a request, on its way from the scheduler to the front end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..budget.kv import REPORT, KvSpec


@dataclass
class Tally:
    """What eviction did to one engine request so far.

    Attributes:
        ticket: names the HTTP request behind it.
        strategy: name of the KV strategy.
        prompt_tokens: rows cached when the prompt is complete.
        kept_tokens: rows that a compaction leaves.
        evicted_tokens, freed_blocks, compactions: sums over all compactions.
        clamped: entries of `usage.pruning.clamped`.
    """

    ticket: str
    strategy: str
    prompt_tokens: int
    kept_tokens: int
    evicted_tokens: int = 0
    freed_blocks: int = 0
    compactions: int = 0
    clamped: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, spec: KvSpec, prompt: int, clamped: list[dict[str, Any]]) -> Tally:
        """The tally of a request that has not been compacted yet."""
        return cls(spec.ticket, spec.strategy, prompt, min(prompt, spec.count(prompt)), clamped=clamped)

    def add(self, evicted: int, freed: int) -> None:
        """Add one compaction."""
        self.compactions += 1
        self.evicted_tokens += evicted
        self.freed_blocks += freed


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
