"""How the cost of choosing grows with the visual tokens: `python -m benchmarks.strategy_scaling --save`.

Processor time of one thread, so other work on the machine disturbs it little. A line through the logarithms of sizes
and times gives the exponent: 1 is cost in proportion to the visual tokens, 2 to their square. The fit has one exponent
for all sizes; beside it stands what the largest size costs per visual token, over what the one of 1,024 does.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from vllm_prune.budget.fields import DEFAULT_STRATEGY
from vllm_prune.catalogue import VISUAL

from .machine import RESULTS, command_line, hardware
from .steps import Steps
from .strategy_cost import MODALITIES, call, grid_of, milliseconds

SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384)
REFERENCE = 1024
KEEPS = (0.5, 0.25, 0.1)


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of the least squares line through the logarithms of at least two sizes and their times."""
    x, y = [math.log(size) for size in sizes], [math.log(one) for one in seconds]
    slope: float = statistics.linear_regression(x, y).slope
    return slope


def processor_milliseconds(function: Callable[[], None], repeats: int) -> float:
    """Median processor time of this process over some calls, after two that do not count."""
    return milliseconds(function, repeats, time.process_time)


def measured(names: Sequence[str], width: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each strategy, modality and share kept: milliseconds by size, exponent and growth."""
    cases = [
        (name, modality, keep)
        for name, modality, keep in product(names, MODALITIES, KEEPS)
        if modality in VISUAL.strategy_class(name).modalities
    ]
    rows, cpu = [], torch.device("cpu")
    with Steps() as steps:
        steps.begin(len(cases) * len(SIZES))
        for name, modality, keep in cases:
            times = {}
            for size in SIZES:
                steps.step(f"{name}, {modality}, {keep:.0%} of {size:,}")
                function = call(name, grid_of(size, modality), int(keep * size), width, cpu, torch.bfloat16)
                times[size] = processor_milliseconds(function, repeats)
            rows.append(row(name, modality, keep, times))
    return rows


def row(name: str, modality: str, keep: float, times: dict[int, float]) -> dict[str, Any]:
    """One case as JSON."""
    per_token = {size: ms / size for size, ms in times.items()}
    return {
        "strategy": name, "modality": modality, "keep": keep, "ms": {str(size): ms for size, ms in times.items()},
        "exponent": exponent(list(times), list(times.values())),
        "growth": per_token[max(times)] / per_token[REFERENCE],
    }  # fmt: skip


def main(
    strategy: Annotated[
        list[str] | None, typer.Option(help="May repeat; by default those that a budget without a name gets.")
    ] = None,
    width: Annotated[int, typer.Option(help="Values per visual token.")] = 768,
    repeats: Annotated[int, typer.Option(help="Calls per figure, of which the median counts.")] = 5,
    save: Annotated[bool, typer.Option(help="Write benchmarks/results/strategy_scaling.json.")] = False,
) -> None:
    """Measure and print; within a few minutes on one core."""
    torch.set_num_threads(1)
    names = strategy or list(dict.fromkeys(DEFAULT_STRATEGY.values()))
    rows = measured(names, width, repeats)
    table = Table(
        "strategy", "modality", "kept", *(f"{size:,}" for size in SIZES), "exponent", "per token, 16,384 / 1,024"
    )
    for one in rows:
        times = (f"{ms:.1f} ms" for ms in one["ms"].values())
        cells = (f"{one['keep']:.0%}", *times, f"{one['exponent']:.2f}", f"{one['growth']:.2f}")
        table.add_row(one["strategy"], one["modality"], *cells)
    Console(width=160).print(table)
    if save:
        about = {"command": command_line("benchmarks.strategy_scaling"), "hardware": hardware(), "width": width,
                 "repeats": repeats, "sizes": list(SIZES), "reference": REFERENCE}  # fmt: skip
        (RESULTS / "strategy_scaling.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
