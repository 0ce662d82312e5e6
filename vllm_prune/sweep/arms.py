"""Arms: the settings under which every sample is sent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Part = Literal["none", "visual", "kv", "both"]
BASELINES: dict[str, tuple[str, ...]] = {"visual": ("random", "uniform", "resize"), "kv": ("random",)}


@dataclass(frozen=True)
class Arm:
    """One budget.

    Attributes:
        part: what is pruned.
        strategy: name for tables and plots.
        keep: requested ratio.
        field: the `pruning` object as JSON text.
    """

    part: Part
    strategy: str
    keep: float
    field: str

    @property
    def pruning(self) -> dict[str, Any]:
        """The `pruning` object of the request."""
        field: dict[str, Any] = json.loads(self.field)
        return field

    @property
    def name(self) -> str:
        """Short and unique."""
        return "unpruned" if self.part == "none" else f"{self.part} {self.strategy} {self.keep:g}"


UNPRUNED = Arm("none", "unpruned", 1.0, '{"visual": null, "kv": null}')


def visual_arms(strategies: Iterable[str], keeps: Sequence[float]) -> list[Arm]:
    """Every strategy, random, uniform and plain resizing at every ratio; KV budgets off."""
    return [
        Arm("visual", name, keep, json.dumps({"visual": {"strategy": name, "keep": keep}, "kv": None}))
        for name in _with_baselines(strategies, "visual")
        for keep in sorted(set(keeps), reverse=True)
    ]


def kv_arms(strategies: Iterable[str], keeps: Sequence[float]) -> list[Arm]:
    """Every KV strategy and random at every ratio; visual budgets off."""
    return [
        Arm("kv", name, keep, json.dumps({"visual": None, "kv": {"strategy": name, "keep": keep}}))
        for name in _with_baselines(strategies, "kv")
        for keep in sorted(set(keeps), reverse=True)
    ]


def combined(visual: Sequence[Arm], kv: Sequence[Arm]) -> list[Arm]:
    """Every visual arm with every KV arm; `keep` is that of the visual part."""
    return [
        Arm(
            "both",
            f"{one.strategy} + {other.strategy} {other.keep:g}",
            one.keep,
            json.dumps({"visual": one.pruning["visual"], "kv": other.pruning["kv"]}),
        )
        for one in visual
        for other in kv
    ]


def _with_baselines(strategies: Iterable[str], part: str) -> list[str]:
    return list(dict.fromkeys([*strategies, *BASELINES[part]]))
