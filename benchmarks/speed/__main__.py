"""Speed of budgets beside stock vLLM: `python -m benchmarks.speed`.

All servers run side by side and take turns, so only ratios of one run are claims; absolute times belong to the machine
that the result names.

Without options: one screenshot, stock and ours at two budgets; `--save` writes `speed.json`. With `--quick` the same in
less than six minutes on two cores: one budget, a smaller screenshot, five rounds of four requests, or as many as fit.
With `--matrix`: every arm, workload and concurrency that is named, vLLM's own pruning of videos among the arms;
`--save` writes `speed_matrix.json`. After every round `build/` has what is measured so far.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..machine import command_line, hardware, has_cuda
from ..random_model import parameters
from ..servers import alike
from ..seven_b import Model, served
from ..shapes import Shape
from ..steps import Steps
from . import bound, micro
from .arms import EVS, OURS, STOCK, VIDCOM2, Arm, defaults, matrix, pruning_arguments
from .fleet import Fleet, Plan
from .forms import QUICK, Form, few_arms, few_loads
from .plot import draw
from .results import ResultFile, few, show
from .rounds import Clock, Load, Measured, measure
from .summary import summarise
from .workloads import CPU, Sizes, Workload, workloads

START_SECONDS = 600
"""How long a server may take to start: a minute where it has a core to itself, many where others work beside it."""
SEEDS = 100
"""Between those of two loads; the parts of a mix and the pictures of a request take the ones that follow."""
KEEPS, KV_KEEPS = (0.75, 0.5, 0.25, 0.1), (0.4, 0.2, 0.1)


class StartError(RuntimeError):
    """A server did not start; says which, why, and where its log is."""


def plans(servers: Sequence[str], loads: Sequence[Load], given: Sequence[str]) -> list[Plan]:
    """Servers with equal arguments, but for vLLM's own pruning."""
    rows = max(load.workload.rows for load in loads)
    most = max(load.concurrency for load in loads)
    limits = json.dumps({"image": 5, "video": 1})
    common = ["--max-model-len", str(max(8192, rows)), "--max-num-seqs", str(most), "--limit-mm-per-prompt", limits]
    frames = max((load.workload.video or (32,))[0] for load in loads)
    common += ["--media-io-kwargs", json.dumps({"video": {"num_frames": frames}})]
    if not has_cuda():
        # Else each server first runs its tower on the longest picture that fits, two minutes on a core for nothing:
        # the size of the KV cache is set.
        common += ["--skip-mm-profiling"]
    result = []
    for name in servers:
        kind = "prune" if name == OURS else "stock"
        pruning = pruning_arguments(name, 0.25, has_cuda())
        result.append(Plan(name, kind, (*common, *given, *pruning), alike()))
    return result


def run(
    folder: Path, given: Sequence[str], arms: Sequence[Arm], loads: Sequence[Load], rounds: int,
    limit: float = float("inf"), keep: Callable[[Sequence[Measured]], None] = lambda measured: None,
) -> None:  # fmt: skip
    """Start the servers that the arms need and measure every load.

    Args:
        folder, given: the checkpoint, and further arguments of its servers.
        arms, loads: what is compared, and at which loads.
        rounds: to measure of each load.
        limit: seconds for all of it; rounds that do not fit are left out. On a machine that is slow to start servers,
            half of them are left for rounds in any case.
        keep: called after each whole round with what is measured so far, one entry per load.

    Raises:
        StartError: a server does not start.
    """
    logs, deadline = Path(tempfile.mkdtemp(prefix="vllm-prune-speed-")), Clock(limit)
    names = list(dict.fromkeys(arm.server for arm in arms))
    taking = [[arm for arm in arms if arm.takes(load.workload)] for load in loads]
    counts = [(rounds + 1) * len(some) for some in taking]
    measured: list[Measured] = []
    with Fleet(folder, logs, START_SECONDS) as fleet, Steps() as steps:
        steps.say(f"starting {len(names)} servers, logs in {logs}")
        if errors := fleet.start(plans(names, loads, given), at_once=2):
            raise StartError("\n".join(f"{name}: {text}" for name, text in errors.items()) + f"\nlogs in {logs}")
        started = time.monotonic() - deadline.started
        steps.say(f"servers started within {started:.0f} s")
        deadline = Clock(max(deadline.left, limit / 2))
        steps.begin(sum(counts))
        for i, (load, some) in enumerate(zip(loads, taking, strict=True)):
            steps.skip_to(sum(counts[:i]))
            clock = Clock(deadline.left / (len(loads) - i))
            done = measure(
                fleet, some, load, rounds, clock, seed=SEEDS * i, tell=lambda text: steps.step(text, deadline.left),
                keep=lambda so_far: keep([*measured, so_far]),
            )  # fmt: skip
            measured.append(done)
            keep(measured)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, as from `timeout` or a stopped job, ends a run as Ctrl-C does: servers stop, results are shown."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(
    rounds: Annotated[int, typer.Option(help="Measured rounds; medians are taken over them.")] = Form.rounds,
    requests: Annotated[int, typer.Option(help="Requests per round under load.")] = Form.requests,
    concurrency: Annotated[
        list[int] | None, typer.Option(help="Requests in flight under load; with --matrix it may repeat.")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Five rounds of four requests with a smaller screen, ours at 25% only, within 330 s.")
    ] = False,
    strategy: Annotated[str | None, typer.Option(help="Strategy of the pruned arms, the defaults without it.")] = None,
    rows: Annotated[int | None, typer.Option(help="Screen height in tokens of 28 pixels; 20, quick 14.")] = None,
    cols: Annotated[int | None, typer.Option(help="Screen width in tokens; 30, quick 24.")] = None,
    shape: Annotated[
        Model, typer.Option(help="qwen3_vl, with --matrix: VidCom2 is among the arms. 7b needs a GPU.")
    ] = Model.small,
    all_arms: Annotated[bool, typer.Option("--matrix", help="All arms instead of the few.")] = False,
    workload: Annotated[list[str] | None, typer.Option(help="With --matrix; may repeat. All by default.")] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="With --matrix; arms whose name has this text, beside stock. May repeat, all by default."),
    ] = None,
    limit: Annotated[
        float | None, typer.Option(help="Seconds for everything; rounds that do not fit are left out, and it is said.")
    ] = None,
    ttft_target: Annotated[
        float | None, typer.Option(help="Seconds to the first token that goodput counts; stock's median by default.")
    ] = None,
    save: Annotated[bool, typer.Option(help="Write the result under benchmarks/results/.")] = False,
) -> None:
    """Measure and print; `--save` keeps the result."""
    if quick and (save or all_arms):
        raise typer.BadParameter("--quick is for a look, and its screen is smaller; drop it for --save and --matrix")
    if shape is Model.qwen3_vl and not all_arms:
        raise typer.BadParameter("qwen3_vl needs --matrix: the few arms cut the tower of the other model")
    form = QUICK if quick else Form(rounds, requests)
    form = replace(form, screen=(rows or form.screen[0], cols or form.screen[1]), limit=limit or form.limit)
    folder, given, prefix = served(shape)
    about = {"command": command_line("benchmarks.speed"), "hardware": hardware()}
    about["parameters"] = parameters(folder)
    sizes, levels = replace(CPU, screen=form.screen), concurrency or ([1, 8, 32] if all_arms else [4])
    if all_arms:
        name, loads = "speed_matrix", _loads(sizes, workload, levels, Shape.of(folder).cell)
        peers = [EVS, VIDCOM2] if shape is Model.qwen3_vl else [EVS]
        arms = _chosen(list(matrix([STOCK, *peers, OURS], KEEPS, KV_KEEPS)), arm)
        result = _with_bounds(arms, Shape.of(folder), ttft_target)
    else:
        name, loads, arms = "speed", few_loads(sizes, levels[0], form), few_arms(strategy, form.keeps)
        result = _with_bounds(arms, Shape.of(folder), ttft_target, few)
        about["setting"] = {"visual_tokens": form.screen[0] * form.screen[1], "rounds": form.rounds,
                            "requests": form.requests, "concurrency": levels[0],
                            "strategy": strategy or defaults()}  # fmt: skip
    file = ResultFile(f"{prefix}{name}", about, joined=all_arms)
    if save:
        _check(file)
    try:
        with terminated_like_interrupted():
            interrupted = _interrupted(
                lambda: run(folder, given, arms, loads, form.rounds, form.limit, lambda some: file.write(result(some)))
            )
    except StartError as error:
        print(f"no server to measure: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    for cell in file.result.get("loads", ()):
        show(cell, f"{about['parameters'] / 1e6:.0f}M parameters, {cell['visual_tokens']} visual tokens")
    if interrupted:
        print(f"interrupted; what was measured until then is in {file.path}", file=sys.stderr)
        raise typer.Exit(130)
    path = file.finish(save)
    if all_arms:
        draw(json.loads(path.read_text())["loads"], path.with_suffix(".png"))
    print(f"result: {path}", file=sys.stderr)


def _check(file: ResultFile) -> None:
    try:
        file.check()
    except ValueError as error:
        raise typer.BadParameter(f"{error}; move {file.name}.json away, or drop --save") from None


def _interrupted(work: Callable[[], None]) -> bool:
    try:
        work()
    except KeyboardInterrupt:
        return True
    return False


def _with_bounds(
    arms: Sequence[Arm], shape: Shape, target: float | None,
    form: Callable[[Sequence[dict[str, Any]]], dict[str, Any]] = lambda cells: {"loads": cells},
) -> Callable[[Sequence[Measured]], dict[str, Any]]:  # fmt: skip
    """What makes a result from loads: their summaries, with the bounds of this machine, in the form of the file."""
    speeds = micro.measure()

    def result(measured: Sequence[Measured]) -> dict[str, Any]:
        cells = []
        for one in measured:
            cells.append(cell := summarise(one, target))
            if not one.load.workload.parts and cell["rows"]:
                bound.add_to(cell, shape, one.load.workload, arms, speeds)
        return {"speeds": asdict(speeds), **form(cells)}

    return result


def _chosen(arms: Sequence[Arm], texts: Sequence[str] | None) -> list[Arm]:
    """Stock, and the arms whose name has one of these texts; all without any."""
    for text in texts or ():
        if not any(text in one.name for one in arms):
            raise typer.BadParameter(
                f"no arm has {text!r} in its name; there are {', '.join(one.name for one in arms)}"
            )
    return [one for one in arms if not texts or one.server == STOCK or any(text in one.name for text in texts)]


def _loads(sizes: Sizes, names: Sequence[str] | None, levels: Sequence[int], cell: int) -> list[Load]:
    everything: dict[str, Workload] = workloads(sizes)
    if unknown := set(names or ()) - everything.keys():
        raise typer.BadParameter(f"no such workload: {', '.join(unknown)}; there are {', '.join(everything)}")
    return [
        Load(everything[name], level, max(2, level), cell, warm=max(2, level // 4))
        for name in names or everything
        for level in levels
    ]


if __name__ == "__main__":
    typer.run(main)
