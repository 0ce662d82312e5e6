"""Steps `visual_*`: a model's shapes over HTTP, stock, stock's own pruning, and ours off, behind and in the tower."""

from __future__ import annotations

from typing import Any

from ..shapes import Shape, build
from ..speed import bound
from ..speed.arms import EVS, OURS, STOCK, VIDCOM2, Arm, off, peer, stock, visual
from ..speed.fleet import Fleet
from ..speed.micro import Speeds
from ..speed.rounds import Clock, Load, measure
from ..speed.summary import summarise
from .runner import Context

WORKLOADS = ("video", "screenshot")
KEEPS = (0.5, 0.25)
LOG_WORDS = ("attention backend", "for vit attention", "GPU KV cache size", "Graph capturing", "FlashAttention version")
LEAVES_FOR_ROUNDS = 20.0


def run(context: Context, shape: Shape, keep_running: bool = False) -> None:
    """Start the model's servers and measure every level of every workload, most telling first.

    Args:
        context: of the step.
        shape: of the model.
        keep_running: leave the servers to the next step.
    """
    fleet, runner = started(context, shape)
    try:
        plan = [(name, level) for level in context.scale.levels for name in WORKLOADS]
        loads: list[dict[str, Any]] = []
        context.result |= {"runner": runner, "loads": loads}
        for number, (name, level) in enumerate(plan):
            with context.part(f"{name} x {level}"):
                loads.append(_cell(context, fleet, shape, name, level, len(plan) - number))
        context.result["log"] = fleet.log_lines(LOG_WORDS)
    finally:
        if not keep_running:
            close(context)


def started(context: Context, shape: Shape) -> tuple[Fleet, str]:
    """Running servers of a model and the runner of ours; they stay until `close`.

    Raises:
        RuntimeError: stock or ours does not start, so that there is nothing to compare.
    """
    close(context)
    scale, runner = context.scale, context.scale.runners[0]
    names, cache = scale.fitting(shape)
    fleet = Fleet(build(shape), context.work, min(scale.start_seconds, context.clock.left), scale.stop_seconds)
    context.shared |= {"fleet": fleet, "shape": shape, "cache": cache}
    plans = [scale.plan(name, name, shape, cache, runner) for name in names]
    context.result |= {
        "model": {"family": shape.family, "weight_bytes": shape.weight_bytes, "layers": shape.layers},
        "cache_bytes": cache,
        "cache_rows": cache // shape.row_bytes,
        "no_room_for": [name for name in scale.peers(shape) if name not in names],
        "arguments": {plan.name: list(plan.arguments) for plan in plans},
    }
    context.tell(f"starting {', '.join(names)}")
    began = context.clock.left
    errors = fleet.start(plans, scale.at_once)
    if OURS in errors and runner != scale.runners[-1]:
        runner = scale.runners[-1]
        context.tell(f"ours did not start on {scale.runners[0]}; trying {runner}")
        errors[f"{OURS} on {scale.runners[0]}"] = errors.pop(OURS)
        fleet.start_seconds = max(1.0, min(scale.start_seconds, context.clock.left))
        errors |= fleet.start([scale.plan(OURS, OURS, shape, cache, runner)])
    context.shared["runner"] = runner
    context.result |= {"start_errors": errors, "notes": fleet.notes, "start_seconds": began - context.clock.left}
    context.problems |= {f"start of {name}": text for name, text in errors.items()}
    context.save()
    if missing := {STOCK, OURS} & errors.keys():
        raise RuntimeError(f"{', '.join(sorted(missing))} did not start: {errors}")
    return fleet, runner


def close(context: Context) -> None:
    """End the servers that a step left running."""
    fleet = context.shared.pop("fleet", None)
    if fleet is not None:
        fleet.stop(*fleet.servers)


def arms(fleet: Fleet) -> list[Arm]:
    """Those whose servers run."""
    ours = [off(), *(visual(keep, place) for place in ("behind", "tower") for keep in KEEPS)]
    return [stock(), *(peer(name, 0.25) for name in (EVS, VIDCOM2) if name in fleet), *ours]


def _cell(context: Context, fleet: Fleet, shape: Shape, name: str, level: int, remaining: int) -> dict[str, Any]:
    scale = context.scale
    workload = scale.workloads[name]
    load = Load(workload, level, scale.requests[level], shape.cell, prepared=True, quiet=scale.quiet)
    clock = Clock(context.clock.left / remaining)
    taking = [arm for arm in arms(fleet) if arm.takes(workload)]
    measured = measure(fleet, taking, load, scale.rounds, clock, seed=WORKLOADS.index(name), tell=context.tell)
    cell = summarise(measured) | {"fits_in_cache": level * workload.rows * shape.row_bytes <= context.shared["cache"]}
    if "speeds" in context.shared:
        bound.add_to(cell, shape, workload, taking, Speeds(**context.shared["speeds"]))
    context.problems |= {f"{name} x {level}, {arm}": text for arm, text in measured.errors.items()}
    if not cell["rows"]:
        raise RuntimeError("no whole round fitted in the time")
    return cell
