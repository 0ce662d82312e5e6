"""A request's budget, divided over the groups of layers; scheduler and workers divide it alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..budget.kv import KvSpec
from ..catalogue import KV
from .strategies._depth import DepthBudget
from .window_slots import WindowLimits

ONE_GROUP = (1,)
"""Layers per group of an engine with one: their number does not matter then."""


@dataclass(frozen=True)
class GroupBudgets:
    """How many rows each group of layers keeps.

    Attributes:
        spec: the budget, within the engine's bounds.
        prompt: rows of the prompt.
        layers: number of layers of each group.
        counts: rows that a compaction leaves in each.
        once: whether only what prefill has left is evicted.
    """

    spec: KvSpec
    prompt: int
    layers: tuple[int, ...]
    counts: tuple[int, ...]
    once: bool = False

    @classmethod
    def of(
        cls,
        spec: KvSpec,
        prompt: int,
        places: Sequence[Any],
        limits: WindowLimits,
        layers: tuple[int, ...] = ONE_GROUP,
    ) -> GroupBudgets:
        """Divide a budget.

        Args:
            spec: as the request names it.
            prompt: rows of the prompt.
            places: vLLM's `PlaceholderRange`s of its media items.
            limits: the engine's.
            layers: number of layers of each group.
        """
        spec = limits.bounded(spec, prompt)
        if len(layers) == 1:
            return cls(spec, prompt, layers, (spec.count(prompt),), KV.strategy_class(spec.strategy).once)
        strategy = KV.create(spec.strategy, json.loads(spec.options))
        visual = visual_tokens(places, prompt - spec.window)
        counts = strategy.group_counts(DepthBudget(spec.count(prompt), spec.window, prompt, visual, layers))
        return cls(spec, prompt, layers, counts, strategy.once)

    @property
    def kept_tokens(self) -> int:
        """Rows of the prompt that the first compaction leaves, on average over the layers, rounded down."""
        return self.mean([min(self.prompt, count) for count in self.counts])

    def mean(self, rows: Sequence[int]) -> int:
        """Average over all layers of a number of rows per group, rounded down."""
        return self._over_layers(rows) // sum(self.layers)

    def _over_layers(self, rows: Sequence[int]) -> int:
        """Sum over all layers of a number of rows per group."""
        return sum(map(int.__mul__, rows, self.layers))

    def due(self, number: int, rows: int, compacted: bool) -> bool:
        """Whether a group of layers that holds that many rows is to be compacted now.

        Args:
            number: of the group.
            rows: rows cached in it.
            compacted: whether it has been compacted since the request's last prefill.
        """
        count = self.counts[number]
        if self.once:
            return not compacted and rows > count and count < self.prompt
        return self.spec.due(self.prompt, rows, compacted, count)

    def gamma(self, number: int) -> float:
        """Share of the prompt that a group keeps, in (0, 1]."""
        return self.spec.gamma(self.prompt, self.counts[number])

    def observed_from(self, evicted: Sequence[int]) -> int | None:
        """First position whose query may belong to the window of a next compaction; None where there will be none.

        Args:
            evicted: rows evicted from each group.
        """
        window, buffer = self.spec.window, self.spec.buffer
        firsts = []
        for count, rows in zip(self.counts, evicted, strict=True):
            if rows == 0 and count < self.prompt:
                firsts.append(self.prompt - window)
            elif not self.once:
                firsts.append(rows + count + buffer + 1 - window)
        return min(firsts, default=None)

    def merged(self, clamped: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Entries of the engine's bounds with those of `clamped`, which say last what a value has become."""
        by_strategy = self.clamped()
        params = {entry["param"] for entry in by_strategy}
        return [*(entry for entry in clamped if entry["param"] not in params), *by_strategy]

    def clamped(self) -> list[dict[str, Any]]:
        """Entries of `usage.pruning.clamped` for what the strategy could not leave out."""
        rows, spec = self._over_layers(self.counts), self.spec
        if rows <= spec.count(self.prompt) * sum(self.layers):
            return []
        if spec.keep is not None:
            applied: float = float(f"{rows / sum(self.layers) / self.prompt:.6g}")
            return [_text_kept("keep", float(spec.keep), applied)]
        assert spec.max_tokens is not None
        return [_text_kept("max_tokens", spec.max_tokens, -(-rows // sum(self.layers)))]


def _text_kept(name: str, requested: float, applied: float) -> dict[str, Any]:
    return {"param": f"pruning.kv.{name}", "requested": requested, "applied": applied, "reason": "text_kept"}


def visual_tokens(places: Sequence[Any], before: int) -> int:
    """Visual tokens among the first `before` tokens of a prompt.

    Args:
        places: vLLM's `PlaceholderRange`s of its media items.
        before: a position.
    """
    total = 0
    for place in places:
        inside = max(0, min(place.length, before - place.offset))
        total += inside if place.is_embed is None else int(place.is_embed[:inside].sum())
    return total
