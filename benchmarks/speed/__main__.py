"""Speed of budgets beside stock vLLM: `python -m benchmarks.speed`.

All servers run side by side and take turns, so only ratios of one run are claims; absolute times belong to the machine
that the result names.

Without options: one screenshot, stock and ours at two budgets; `--save` writes `speed.json`. With `--matrix`: every
arm, workload and concurrency that is named, vLLM's own pruning of videos among the arms; `--save` writes
`speed_matrix.json`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vllm_prune.cli.host import installed_libraries, preload_list

from ..machine import RESULTS, hardware, has_cuda
from ..random_model import parameters
from ..servers import PRELOAD_AT_START
from ..seven_b import Model, served
from ..shapes import Shape
from . import bound, micro
from .arms import EVS, OURS, STOCK, Arm, matrix, off, pruning_arguments, stock, visual
from .fleet import Fleet, Plan
from .rounds import Clock, Load, Measured, measure
from .summary import summarise
from .workloads import CPU, Sizes, Workload, workloads

CUT_AFTER = 1
"""Blocks of the vision tower that see every cell, of 8; 4 of a usual tower's 32."""
KEEPS, KV_KEEPS = (0.75, 0.5, 0.25, 0.1), (0.4, 0.2, 0.1)
CELL = 28


def quick_arms(strategy: str) -> list[Arm]:
    """Stock, ours without a budget, and ours at two budgets, behind the vision tower and inside it."""
    kept = [_named(visual(keep, place, strategy), keep) for place in ("behind", "tower") for keep in (0.5, 0.25)]
    return [stock(), replace(off(), name="keep 1 (off)", pruning=None), *kept]


def _named(arm: Arm, keep: float) -> Arm:
    """The same arm under the name that `speed.json` has always had; the small model's tower is cut early."""
    if arm.place != "tower":
        return replace(arm, name=f"keep {keep:g}")
    field: dict[str, Any] = json.loads(json.dumps(arm.pruning))
    field["visual"]["options"]["after"] = CUT_AFTER
    return replace(arm, name=f"keep {keep:g}, cut inside the tower", pruning=field)


def plans(servers: Sequence[str], loads: Sequence[Load], given: Sequence[str]) -> list[Plan]:
    """Servers with equal arguments, but for vLLM's own pruning."""
    rows = max(load.workload.rows for load in loads)
    most = max(load.concurrency for load in loads)
    limits = json.dumps({"image": 5, "video": 1})
    common = ["--max-model-len", str(max(8192, rows)), "--max-num-seqs", str(most), "--limit-mm-per-prompt", limits]
    frames = max((load.workload.video or (32,))[0] for load in loads)
    common += ["--media-io-kwargs", json.dumps({"video": {"num_frames": frames}})]
    # Ours preloads these by itself; the comparison is not about OpenMP runtimes.
    preloaded = {"LD_PRELOAD": ":".join(preload_list(PRELOAD_AT_START, installed_libraries()))}
    result = []
    for name in servers:
        kind = "prune" if name == OURS else "stock"
        pruning = pruning_arguments(name, 0.25, has_cuda())
        result.append(Plan(name, kind, (*common, *given, *pruning), preloaded))
    return result


def run(folder: Path, given: Sequence[str], arms: Sequence[Arm], loads: Sequence[Load], rounds: int) -> list[Measured]:
    """Start the servers that the arms need and measure every load."""
    logs = Path(tempfile.mkdtemp(prefix="vllm-prune-speed-"))
    names = list(dict.fromkeys(arm.server for arm in arms))
    with Fleet(folder, logs) as fleet, Progress(transient=True) as progress:
        task = progress.add_task(f"starting {len(names)} servers", total=None)
        if errors := fleet.start(plans(names, loads, given), at_once=2):
            raise RuntimeError(f"logs in {logs}: " + "\n".join(f"{name}: {text}" for name, text in errors.items()))
        results = []
        for load in loads:
            taking = [arm for arm in arms if arm.takes(load.workload)]
            progress.update(task, total=(rounds + 1) * len(taking), completed=0)
            tell = lambda text: progress.update(task, advance=1, description=text)  # noqa: E731
            results.append(measure(fleet, taking, load, rounds, Clock(), tell=tell))
        return results


def show(cell: dict[str, Any], note: str) -> None:
    """Print the table of one load."""
    title = f"{cell['workload']}, {cell['concurrency']} in flight, {cell['rounds']} rounds, {note}"
    table = Table(
        "arm", "prompt tokens", "TTFT p50 ms", "TTFT vs stock", "ITL p50 ms", "requests/s", "vs stock", title=title
    )
    for row in cell["rows"]:
        gap = row["itl_p50_ms"]
        table.add_row(
            row["arm"], f"{row['prompt_tokens']:.0f}", f"{row['ttft_p50_ms']:.0f}", f"{row['ttft_ratio']:.2f}x",
            "-" if gap is None else f"{gap:.1f}", f"{row['requests_per_second']:.2f}",
            f"{row['throughput_ratio']:.2f}x ({row['throughput_lowest']:.2f} to {row['throughput_highest']:.2f})",
        )  # fmt: skip
    Console(width=130).print(table)


def quick_result(alone: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
    """Rows of `speed.json`: time to the first token of one request alone, throughput under load."""
    rows = []
    for one, many in zip(alone["rows"], loaded["rows"], strict=True):
        rows.append({
            "arm": one["arm"], "prompt_tokens": int(many["prompt_tokens"]), "ttft": one["ttft_p50_ms"] / 1000,
            "requests_per_second": many["requests_per_second"], "ttft_ratio": one["ttft_ratio"],
            "throughput_ratio": many["throughput_ratio"],
        })  # fmt: skip
    return {"rows": rows, "loads": [alone, loaded]}


def main(
    rounds: Annotated[int, typer.Option(help="Measured rounds; medians are taken over them.")] = 7,
    requests: Annotated[int, typer.Option(help="Requests per round under load.")] = 8,
    concurrency: Annotated[
        list[int] | None, typer.Option(help="Requests in flight under load; with --matrix it may repeat.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Five rounds of four requests.")] = False,
    strategy: Annotated[str, typer.Option(help="Strategy of the pruned arms.")] = "divprune",
    rows: Annotated[int, typer.Option(help="Screen height in tokens (28 pixels each).")] = 32,
    cols: Annotated[int, typer.Option(help="Screen width in tokens.")] = 48,
    shape: Annotated[Model, typer.Option(help="7b needs a GPU.")] = Model.small,
    all_arms: Annotated[bool, typer.Option("--matrix", help="All arms instead of the few.")] = False,
    workload: Annotated[list[str] | None, typer.Option(help="With --matrix; may repeat. All by default.")] = None,
    ttft_target: Annotated[
        float | None, typer.Option(help="Seconds to the first token that goodput counts; stock's median by default.")
    ] = None,
    save: Annotated[bool, typer.Option(help="Write the result under benchmarks/results/.")] = False,
) -> None:
    """Measure and print; `--save` keeps the result."""
    if quick:
        rounds, requests = 5, 4
    folder, given, prefix = served(shape)
    sizes = replace(CPU, screen=(rows, cols))
    command = "python -m benchmarks.speed " + " ".join(sys.argv[1:])
    about = {"command": command, "hardware": hardware(), "parameters": parameters(folder)}
    if all_arms:
        loads = _loads(sizes, workload, concurrency or [1, 8, 32])
        arms = list(matrix([STOCK, EVS, OURS], KEEPS, KV_KEEPS))
        speeds = micro.measure()
        found = run(folder, given, arms, loads, rounds)
        name, result = "speed_matrix", {"speeds": asdict(speeds), "loads": []}
        for load, one in zip(loads, found, strict=True):
            result["loads"].append(cell := summarise(one, ttft_target))
            if not load.workload.parts:
                bound.add_to(cell, Shape.of(folder), load.workload, arms, speeds)
    else:
        name, result = "speed", _few(folder, given, sizes, strategy, (concurrency or [4])[0], requests, rounds)
        result["setting"] = {"visual_tokens": rows * cols, "rounds": rounds, "requests": requests,
                             "concurrency": (concurrency or [4])[0], "strategy": strategy}  # fmt: skip
    for cell in result["loads"]:
        show(cell, f"{about['parameters'] / 1e6:.0f}M parameters, {cell['visual_tokens']} visual tokens")
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{prefix}{name}.json").write_text(json.dumps(about | result, indent=1, allow_nan=False) + "\n")


def _few(
    folder: Path, given: Sequence[str], sizes: Sizes, strategy: str, concurrency: int, requests: int, rounds: int
) -> dict[str, Any]:
    screenshot = workloads(sizes)["screenshot"]
    loads = [Load(screenshot.answering(1), 1, 1, CELL), Load(screenshot, concurrency, requests, CELL)]
    alone, loaded = (summarise(one) for one in run(folder, given, quick_arms(strategy), loads, rounds))
    return quick_result(alone, loaded)


def _loads(sizes: Sizes, names: Sequence[str] | None, levels: Sequence[int]) -> list[Load]:
    everything: dict[str, Workload] = workloads(sizes)
    if unknown := set(names or ()) - everything.keys():
        raise typer.BadParameter(f"no such workload: {', '.join(unknown)}; there are {', '.join(everything)}")
    return [Load(everything[name], level, max(2, level), CELL) for name in names or everything for level in levels]


if __name__ == "__main__":
    typer.run(main)
