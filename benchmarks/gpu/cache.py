"""Step `kv`: KV budgets at five screenshots in a tight and an ample pool, and a long answer with a cap, per runner.

The screenshots are the same in every request and are encoded once, while a text in front of them keeps vLLM from
sharing prefixes: what is measured is the language model and its cache. The servers are those of the step before; for
the second runner one of them makes room for ours with that runner.
"""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import replace
from typing import Any

from ..speed.arms import EVS, OURS, VIDCOM2, Arm, kv, off, stock
from ..speed.fleet import Fleet
from ..speed.rounds import Clock, Load, Round, measure, one_round
from ..speed.summary import summarise
from . import visual
from .runner import Context, Skip

KEEP = 0.2
WINDOWS = 8
PARTS = ("tight", "ample", "long")


def run(context: Context) -> None:
    """Measure with the first runner, then with the second."""
    shape = context.scale.shapes[0]
    if "fleet" not in context.shared or context.shared.get("shape") is not shape:
        visual.started(context, shape)
    fleet: Fleet = context.shared["fleet"]
    try:
        # Where ours did not start on the first runner, what runs is on the second already.
        runners = context.scale.runners[context.scale.runners.index(context.shared["runner"]) :]
        for number, runner in enumerate(runners):
            server = OURS
            if number:
                with context.part(f"{runner}: start"):
                    server = _second(context, fleet, runner)
                if server == OURS:
                    continue
            _parts(context, fleet, runner, server, len(runners) - number)
        if not context.scale.cuda:
            context.result.setdefault("skipped", {})["v2"] = "no CUDA: model runner V2 needs it"
    finally:
        visual.close(context)


def _second(context: Context, fleet: Fleet, runner: str) -> str:
    """Ours on another runner, in the place of stock's own pruning and of ours on the first."""
    shape, cache, name = context.shared["shape"], context.shared["cache"], f"{OURS}_{runner}"
    fleet.stop(EVS, VIDCOM2, OURS)
    fleet.start_seconds = min(context.scale.start_seconds, max(1.0, context.clock.left))
    errors = fleet.start([context.scale.plan(name, OURS, shape, cache, runner)])
    if errors:
        raise RuntimeError(errors[name])
    return name


def _parts(context: Context, fleet: Fleet, runner: str, server: str, runners_left: int) -> None:
    found = context.result.setdefault("runners", {}).setdefault(runner, {})
    left = context.clock.left / runners_left
    until = context.clock.left - left
    measures = {"tight": _tight, "ample": _ample, "long": _long}
    for number, name in enumerate(PARTS):
        with context.part(f"{runner}: {name}"):
            clock = Clock(max(0.0, (context.clock.left - until) / (len(PARTS) - number)))
            found[name] = measures[name](context, fleet, server, clock)


def _asking(arm: Arm, server: str) -> Arm:
    return replace(arm, server=server) if arm.server == OURS else arm


def _pool(
    context: Context, fleet: Fleet, server: str, clock: Clock, level: int, tokens: int, arms: list[Arm]
) -> dict[str, Any]:
    shape, workload = context.shared["shape"], context.scale.turns(tokens)
    load = Load(workload, level, max(level, 2), shape.cell, quiet=context.scale.quiet, warm=1)
    chosen = [_asking(arm, server) for arm in arms]
    measured = measure(fleet, chosen, load, context.scale.rounds, clock, seed=21, tell=context.tell)
    cell = summarise(measured)
    cell["requests_that_fit"] = context.shared["cache"] / (shape.row_bytes * workload.rows)
    context.problems |= {f"{workload.name} x {level}, {arm}": text for arm, text in measured.errors.items()}
    if not cell["rows"]:
        raise RuntimeError(f"no whole round fitted in the time, or failed: {[*measured.errors]}")
    return cell


def _tight(context: Context, fleet: Fleet, server: str, clock: Clock) -> dict[str, Any]:
    arms = [stock(), kv(KEEP, "gui_kv")]
    return _pool(context, fleet, server, clock, context.scale.tight, context.scale.turn_answer, arms)


def _ample(context: Context, fleet: Fleet, server: str, clock: Clock) -> dict[str, Any]:
    arms = [stock(), off(), kv(KEEP, "gui_kv"), replace(kv(KEEP, "snapkv"), name="kv 20%, snapkv")]
    return _pool(context, fleet, server, clock, context.scale.ample, context.scale.short_answer, arms)


def _long(context: Context, fleet: Fleet, server: str, clock: Clock) -> dict[str, Any]:
    """The time between tokens at the end of a long answer, over that at its start; stock's and ours with a cap."""
    workload = context.scale.turns(context.scale.sizes.long_answer)
    load = Load(workload, 1, 1, context.shared["shape"].cell, quiet=context.scale.quiet)
    cap = {"visual": None, "kv": {"max_tokens": context.scale.cap, "strategy": "snapkv"}}
    result: dict[str, Any] = {"tokens": workload.tokens, "cap": context.scale.cap}
    for arm in (stock(), Arm("capped", server, cap)):
        if clock.left <= 0:
            raise Skip(f"no time was left for {arm.name}")
        chat = next(workload.chats(load.cell, seed=22))
        # The first answer is short: it warms up and encodes the screenshots.
        asyncio.run(one_round(fleet, arm, [chat], replace(load, workload=workload.answering(2))))
        found = asyncio.run(one_round(fleet, arm, [chat], load))
        result[arm.name] = _windows(found) | {"kv": found.answers[0].usage.get("pruning", {}).get("kv")}
    return result


def _windows(found: Round) -> dict[str, Any]:
    gaps = found.gaps
    length = max(1, len(gaps) // WINDOWS)
    medians = [1000 * statistics.median(gaps[i : i + length]) for i in range(0, len(gaps) - length + 1, length)]
    return {"seconds": found.seconds, "window_medians_ms": medians, "end_over_start": medians[-1] / medians[0],
            "kv_peak": found.peaks.kv_usage}  # fmt: skip
