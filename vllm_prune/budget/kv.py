"""The KV budget of one request, in the form that travels to the scheduler and the workers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

KEY = "vllm_prune_kv"
"""Key of the wire form among a request's extra sampling arguments."""

REPORT = "vllm_prune_kv"
"""Key of the scheduler's report among an engine output's transfer parameters."""

FEWEST_ROWS = 3
"""Smallest budget: one scored row and a window, as in GUI-KV (its window is min(8, C - 2))."""


@dataclass(frozen=True)
class KvSpec:
    """Canonical KV budget.

    Attributes:
        strategy: catalogue name.
        options: canonical JSON of the strategy's options.
        keep: ratio of the prompt's cached rows, as decimal text; None when `max_tokens` is given.
        max_tokens: rows cached per layer and KV head after each compaction.
        window: rows at the end that are always kept.
        buffer: decode rows past the budget before it is compacted again.
        ticket: names the HTTP request that waits for the report.
    """

    strategy: str
    options: str = "{}"
    keep: str | None = None
    max_tokens: int | None = None
    window: int = 8
    buffer: int = 128
    ticket: str = ""

    def count(self, prompt: int) -> int:
        """C, rows that a compaction leaves, for a prompt of that many cached rows."""
        if self.keep is not None:
            return max(FEWEST_ROWS, int(Decimal(self.keep) * prompt))
        assert self.max_tokens is not None
        return max(FEWEST_ROWS, self.max_tokens)

    def window_of(self, count: int) -> int:
        """W for a budget of `count` rows: at least one scored row is left beside it."""
        return max(1, min(self.window, count - 2))

    def due(self, prompt: int, rows: int, compacted: bool) -> bool:
        """Whether a request with that many cached rows is to be compacted now.

        Args:
            prompt: rows of the prompt.
            rows: rows cached.
            compacted: whether it has been compacted since its last prefill.
        """
        count = self.count(prompt)
        return rows > count + (self.buffer if compacted or count >= prompt else 0)

    def gamma(self, prompt: int) -> float:
        """Share of the prompt that is kept, in (0, 1]."""
        return float(self.keep) if self.keep is not None else min(1.0, self.count(prompt) / prompt)

    def wire(self) -> str:
        """JSON text with a fixed key order."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def of(cls, extra_args: Mapping[str, Any] | None) -> KvSpec | None:
        """The budget among a request's extra arguments, None where there is none."""
        text = (extra_args or {}).get(KEY)
        return None if text is None else cls(**json.loads(text))
