"""Throughput of cuts inside the tower: `python -m benchmarks.stts.speed --save`.

One engine, one video per request, and arms that take turns: no budget (vLLM's own path), `stts`, and the same share
kept behind the tower. Random weights: only time is measured here. Requests per second of whole requests, processor,
tower and language model included; ratios are of one round.

Without tcmalloc the C library gives large tensors back to the kernel one by one, and the unpruned arm, whose tensors
are largest, waits for fresh pages most. `--reuse` takes that out of the comparison.

On a GPU: `python -m benchmarks.stts.speed --shape 7b --dtype bfloat16 --side 280 --prepared --save`. Preparing a video
then takes as long as the model does, and a server prepares in processes of its own; `--prepared` leaves it out.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .. import seven_b
from ..machine import RESULTS, command_line, hardware
from ..seven_b import Model
from . import towers
from .agreement import engine, video_of
from .towers import CACHE, LENGTHS, film, sizes

REUSE = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""The C library keeps freed memory, as tcmalloc does; it reads this when a process starts."""


@dataclass(frozen=True)
class Arm:
    """One way to ask."""

    name: str
    visual: dict[str, Any] | None


def arms() -> list[Arm]:
    """No budget, `stts` at two budgets, and the larger one behind the tower."""
    scored = [
        Arm(f"keep {keep:g}, stts (inside the tower)", {"strategy": "stts", "keep": keep}) for keep in (0.5, 0.25)
    ]
    return [Arm("stock", None), *scored, Arm("keep 0.5, behind the tower", {"strategy": "uniform", "keep": 0.5})]


def start(shape: Model, dtype: str) -> tuple[Any, Path]:
    """The engine of a model, and the model's folder."""
    if shape is Model.small:
        return engine(folder := towers.build(), dtype, **LENGTHS, **CACHE), folder
    options = {"load_format": "dummy", "kv_cache_memory_bytes": 4 << 30, "gpu_memory_utilization": 0.7}
    return engine(folder := seven_b.build(), dtype, **LENGTHS, **options), folder


def measure(llm: Any, frames: int, side: int, rounds: int, prepared: bool) -> dict[str, list[float]]:
    """Seconds per request of each arm and round; the order turns, and a first round with a short video warms up."""
    from vllm import SamplingParams

    chosen, sampling = arms(), SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    found: dict[str, list[float]] = {arm.name: [] for arm in chosen}
    with Progress(transient=True) as progress:
        task = progress.add_task(f"{frames} frames", total=(rounds + 1) * len(chosen))
        for number in range(rounds + 1):
            turn, shots = number % len(chosen), film(frames if number else 8, side, number)
            for arm in chosen[turn:] + chosen[:turn]:
                prompt: dict[str, Any] = {
                    "prompt": "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>what is it ?<|im_end|>\n",
                    "multi_modal_data": {"video": [video_of(shots)]},
                }
                if arm.visual is not None:
                    prompt["mm_processor_kwargs"] = {"vllm_prune": arm.visual}
                llm.llm_engine.reset_mm_cache()
                if prepared:
                    llm.generate([prompt], sampling, use_tqdm=False)
                llm.llm_engine.reset_encoder_cache()
                llm.reset_prefix_cache()
                started = time.perf_counter()
                llm.generate([prompt], sampling, use_tqdm=False)
                if number:
                    found[arm.name].append(time.perf_counter() - started)
                progress.update(task, advance=1, description=f"{frames} frames, round {number}: {arm.name}")
    return found


def summarise(found: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Median seconds, and the median, lowest and highest of the per-round ratios to stock."""
    rows = []
    for name, seconds in found.items():
        ratios = [stock / own for stock, own in zip(found["stock"], seconds, strict=True)]
        rows.append({"arm": name, "seconds": statistics.median(seconds), "throughput_ratio": statistics.median(ratios),
                     "lowest": min(ratios), "highest": max(ratios)})  # fmt: skip
    return rows


def main(
    frames: Annotated[list[int] | None, typer.Option(help="Frames of a video; may be given several times.")] = None,
    side: Annotated[
        list[int] | None, typer.Option(help="Pixels per side of a frame; may be given several times.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 5,
    dtype: Annotated[str, typer.Option(help="float32 where the processor has no bfloat16 arithmetic.")] = "float32",
    shape: Annotated[Model, typer.Option(help="7b needs a GPU.")] = Model.small,
    prepared: Annotated[bool, typer.Option(help="Leave the processor's work out.")] = False,
    reuse: Annotated[bool, typer.Option(help="Let the C library keep freed memory, as tcmalloc does.")] = False,
    save: Annotated[bool, typer.Option(help="Write the result under benchmarks/results/.")] = False,
) -> None:
    """Measure and print; `--save` keeps the result."""
    if reuse and not REUSE.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.stts.speed", *sys.argv[1:]], os.environ | REUSE)
    llm, folder = start(shape, dtype)
    results = []
    for pixels, count in product(side or (112, 224), frames or (128, 256)):
        found = measure(llm, count, pixels, rounds, prepared)
        rows, cells = summarise(found), count // 2 * (pixels // 28) ** 2
        results.append({"side": pixels, "frames": count, "cells": cells, "rows": rows, "seconds": found})
        title = f"{count} frames of {pixels} pixels, {cells} tokens"
        table = Table("arm", "seconds", "throughput vs stock", "lowest to highest", title=title)
        for row in rows:
            spread = f"{row['lowest']:.2f} - {row['highest']:.2f}"
            table.add_row(row["arm"], f"{row['seconds']:.2f}", f"{row['throughput_ratio']:.2f}x", spread)
        Console().print(table)
    if save:
        command = command_line("benchmarks.stts.speed")
        whole = {"command": command, "hardware": hardware(), "model": sizes(folder), "rounds": rounds,
                 "dtype": dtype, "prepared": prepared, "after": towers.AFTER, "results": results}  # fmt: skip
        own = "stts_speed_reuse" if reuse else "stts_speed"
        name = own if shape is Model.small else "gpu_stts_speed"
        (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
