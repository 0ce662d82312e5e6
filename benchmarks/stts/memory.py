"""Peak memory of the encoder by budget: `python -m benchmarks.stts.memory --save`.

Each budget runs in a process of its own: one small video to warm up, then one large one straight through the model's
encoder. The peak is the kernel's high-water mark of resident memory, set back before the call; what was resident then
is taken off. Memory that the C library keeps for itself is off by MALLOC_* variables.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..machine import RESULTS, command_line, hardware
from .towers import CACHE, LENGTHS, build, film, sizes

# Freed blocks go back to the kernel at once, so that the mark is that of live tensors.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
BUDGETS: tuple[tuple[str, dict[str, Any] | None], ...] = (
    ("no budget", None),
    *((f"stts, keep {keep:g}", {"strategy": "stts", "keep": keep}) for keep in (0.5, 0.25)),
    *(
        (f"uniform in the tower, keep {keep:g}",
         {"strategy": "uniform", "keep": keep, "options": {"where": "tower", "after": 4}})
        for keep in (0.5, 0.25)
    ),
)  # fmt: skip


def resident(key: str) -> int:
    """Bytes of `VmRSS` or `VmHWM` of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def one(index: int, frames: int, side: int) -> None:
    """Measure one budget in this process and print it as JSON."""
    from vllm import SamplingParams

    from .agreement import engine, model_of, video_of

    llm = engine(build(), "float32", **LENGTHS, **CACHE)
    model, marks = model_of(llm), []
    original = model.embed_multimodal

    def measured(**kwargs: Any) -> Any:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        result = original(**kwargs)
        marks.append(resident("VmHWM") - before)
        return result

    model.embed_multimodal = measured
    visual, sampling = BUDGETS[index][1], SamplingParams(max_tokens=1)
    for count in (8, frames):
        prompt: dict[str, Any] = {
            "prompt": "<|vision_start|><|video_pad|><|vision_end|>",
            "multi_modal_data": {"video": [video_of(film(count, side, count))]},
        }
        if visual is not None:
            prompt["mm_processor_kwargs"] = {"vllm_prune": visual}
        llm.generate([prompt], sampling, use_tqdm=False)
    typer.echo("PEAK " + json.dumps(marks[-1]))


def measure(frames: int, side: int, rounds: int) -> list[dict[str, Any]]:
    """Peak bytes of every budget over rounds, each in a process of its own."""
    found: dict[str, list[int]] = {name: [] for name, _ in BUDGETS}
    for _ in range(rounds):
        for index, (name, _) in enumerate(BUDGETS):
            command = [sys.executable, "-m", "benchmarks.stts.memory", "--index", str(index), "--frames", str(frames),
                       "--side", str(side)]  # fmt: skip
            done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
            marks = [line for line in done.stdout.splitlines() if line.startswith("PEAK ")]
            if done.returncode or not marks:
                raise RuntimeError(f"{name}: {(done.stdout + done.stderr)[-2000:]}")
            found[name].append(json.loads(marks[0][5:]))
    whole = statistics.median(found["no budget"])
    return [
        {"arm": name, "bytes": statistics.median(own), "of_stock": statistics.median(own) / whole, "rounds": own}
        for name, own in found.items()
    ]


def main(
    frames: Annotated[int, typer.Option(help="Frames of the video.")] = 128,
    side: Annotated[int, typer.Option(help="Pixels per side of a frame.")] = 224,
    rounds: Annotated[int, typer.Option(help="Processes per budget.")] = 1,
    index: Annotated[int | None, typer.Option(help="Measure one budget in this process.", hidden=True)] = None,
    save: Annotated[bool, typer.Option(help="Write the result under benchmarks/results/.")] = False,
) -> None:
    """Measure and print; `--save` keeps the result."""
    if index is not None:
        return one(index, frames, side)
    folder, rows = build(), measure(frames, side, rounds)
    table = Table("budget", "peak", "of no budget", title=f"encoder, {frames} frames")
    for row in rows:
        table.add_row(row["arm"], f"{row['bytes'] / 2**20:.0f} MiB", f"{row['of_stock']:.2f}")
    Console().print(table)
    if save:
        command = command_line("benchmarks.stts.memory")
        patches = frames // 2 * (side // 14) ** 2
        whole = {"command": command, "hardware": hardware(), "model": sizes(folder), "frames": frames,
                 "patches": patches, "rows": rows}  # fmt: skip
        (RESULTS / "stts_memory.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
