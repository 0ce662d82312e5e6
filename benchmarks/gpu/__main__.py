"""All steps in their order: `benchmarks/gpu.sh` calls this."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from ..machine import hardware, has_cuda
from ..speed.rounds import Clock
from . import backends, cache, exact, machine_step, tower, visual
from .runner import FAILED, TIMED_OUT, Context, Step, make_context, run_all
from .scale import Scale, full, tiny


def steps(scale: Scale) -> list[Step]:
    """Most telling first.

    `exact` says whether anything works on CUDA at all, and a wrong answer makes every speed worthless. The first
    model's speed is the claim that users come for; its servers then serve the KV measurements, which decide the runner.
    The account of the tower says why the first figures are what they are. The second model costs another start of
    several servers; the marked tests and other attention kernels check again what the steps before have run.
    """
    first, second = scale.shapes
    limits = [
        Step("machine", 60, 15, machine_step.run),
        Step("exact", 120, 45, exact.run),
        Step(f"visual_{first.family}", 220, 80, partial(visual.run, shape=first, keep_running=True)),
        Step("kv", 180, 50, cache.run),
        Step("tower", 160, 45, tower.run),
        Step(f"visual_{second.family}", 170, 80, partial(visual.run, shape=second)),
        Step("kernels", 150, 20, backends.run),
    ]
    return [replace(step, limit=scale.patience * step.limit) for step in limits]


def _scale(name: str) -> Scale:
    cuda, memory = has_cuda(), 0
    if cuda:
        import torch

        memory = torch.cuda.get_device_properties(0).total_memory
    if name == "tiny":
        return tiny(cuda, memory)
    if not cuda:
        raise typer.BadParameter("there is no CUDA device; --scale tiny runs every step on a CPU, small")
    return full(memory)


def _end(number: int, frame: FrameType | None) -> None:
    # Leaves by the context managers, which end the servers.
    sys.exit(128 + number)


def _fail(context: Context) -> None:
    raise RuntimeError("this step fails on purpose, by --control")


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.", envvar="OUT")],
    scale: Annotated[str, typer.Option(help="full, or tiny for a try on any machine.")] = "full",
    seconds: Annotated[float, typer.Option(help="Deadline of the whole run.")] = 570,
    step: Annotated[list[str] | None, typer.Option(help="Only these; may repeat.")] = None,
    control: Annotated[bool, typer.Option(help="Add a step that fails, to see that the others still run.")] = False,
) -> None:
    """Run the steps; exit 1 if one failed or ran out of time, 0 if the rest was done or skipped."""
    signal.signal(signal.SIGTERM, _end)
    deadline = Clock(seconds)
    sizes = _scale(scale)
    known = {one.name: one for one in steps(sizes)}
    if unknown := set(step or ()) - known.keys():
        raise typer.BadParameter(f"no such step: {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in known if name in (step or known)]
    if control:
        chosen.insert(1, Step("control", 10, 0, _fail))
    context = make_context(sizes, out, {"hardware": hardware(), "site": os.environ.get("SITE")})
    try:
        summary = run_all(chosen, context, deadline)
    finally:
        visual.close(context)
    if any(line["status"] in (FAILED, TIMED_OUT) for line in summary):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
