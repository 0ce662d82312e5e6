"""The short comparison: which arms and loads it has, and how much of each in a quick look."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..machine import QUICK_QUIET_SECONDS, has_cuda, quiet_seconds
from .arms import Arm, off, stock, visual
from .rounds import Load
from .workloads import Sizes, workloads

CUT_AFTER = 1
"""Blocks of the vision tower that see every cell, of 8; 4 of a usual tower's 32."""
CELL = 28


@dataclass(frozen=True)
class Form:
    """How much is measured.

    Attributes:
        rounds: of each load.
        requests: per round under load.
        screen: rows and columns of the screenshot, in visual tokens.
        keeps: shares of the visual tokens.
        limit: seconds for all of it; rounds that do not fit are left out.
        quiet: seconds of pause before each measurement.
        warm: requests that warm up under load, all of a round by default.
    """

    rounds: int = 5
    requests: int = 4
    screen: tuple[int, int] = (20, 30)
    keeps: tuple[float, ...] = (0.5, 0.25)
    limit: float = float("inf")
    quiet: float | None = None
    warm: int | None = None


QUICK = Form(5, 4, (14, 24), (0.25,), 330.0, QUICK_QUIET_SECONDS, 1)
"""Ends within six minutes on two cores, what ends the servers included."""


def few_arms(strategy: str | None = None, keeps: Sequence[float] = Form.keeps) -> list[Arm]:
    """Stock, ours without a budget, and ours at some budgets, behind the vision tower and inside it; see `visual`."""
    kept = [_named(visual(keep, place, strategy), keep) for place in ("behind", "tower") for keep in keeps]
    return [stock(), replace(off(), name="keep 1 (off)", pruning=None), *kept]


def _named(arm: Arm, keep: float) -> Arm:
    """The same arm under the name that `speed.json` has always had; the small model's tower is cut early."""
    if arm.place != "tower":
        return replace(arm, name=f"keep {keep:g}")
    field: dict[str, Any] = json.loads(json.dumps(arm.pruning))
    field["visual"]["options"]["after"] = CUT_AFTER
    return replace(arm, name=f"keep {keep:g}, cut inside the tower", pruning=field)


def few_loads(sizes: Sizes, concurrency: int, form: Form) -> list[Load]:
    """One request alone with an answer of one token, and several at once."""
    quiet = quiet_seconds() if form.quiet is None or has_cuda() else form.quiet
    screenshot = workloads(replace(sizes, screen=form.screen))["screenshot"]
    return [
        Load(screenshot.answering(1), 1, 1, CELL, quiet=quiet),
        Load(screenshot, concurrency, form.requests, CELL, quiet=quiet, warm=form.warm),
    ]
