"""Accuracy of the demo model on held-out samples: `python -m benchmarks.demo_model.evaluate`.

Greedy answers of transformers over the whole unpruned prompt, on the test split; Wilson intervals.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vllm_prune.sweep.statistics import wilson

from ..machine import command_line
from ..tasks import GENERATORS, Sample
from .batches import collate

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "checkpoint"


def held_out(n: int, tasks: Sequence[str] = tuple(GENERATORS), screens: int | None = None) -> list[Sample]:
    """The first `n` samples of the test split, task by task; of the screens the first `screens`."""
    counts = {task: screens if task == "screens" and screens else n for task in tasks}
    return [GENERATORS[task]("test", i) for task, count in counts.items() for i in range(count)]


class Judge:
    """The checkpoint in transformers; says whether an answer is right."""

    def __init__(self, folder: Path = CHECKPOINT) -> None:
        from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

        self.words = AutoTokenizer.from_pretrained(folder)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def right(self, one: Sample) -> bool:
        """Whether every greedy token of the answer, its end included, is right."""
        from .train import forward

        batch = collate([one], self.words)
        last = batch.asked[-1]
        return bool(forward(self.model, batch).right()[0, last.start : last.end].all())


def accuracy(judge: Judge, samples: list[Sample]) -> dict[str, dict[str, Any]]:
    """Right answers, n and interval per task, and per task and kind; visual tokens of the smallest and largest."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    sizes: dict[str, list[int]] = defaultdict(list)
    for one in track(samples, description="asking", transient=True):
        right = judge.right(one)
        for name in (one.task, f"{one.task}/{one.kind}"):
            counts[name][0] += right
            counts[name][1] += 1
            sizes[name].append(sum(math.prod(medium.grid) for medium in one.media))
    return {
        name: {"right": right, "n": n, "accuracy": right / n, "interval": wilson(right, n),
               "tokens": [min(sizes[name]), max(sizes[name])]}
        for name, (right, n) in sorted(counts.items())
    }  # fmt: skip


def main(
    n: Annotated[int, typer.Option(help="Held-out samples of each task.")] = 120,
    screens: Annotated[int, typer.Option(help="Held-out screens, which take the least time.")] = 500,
    task: Annotated[list[str] | None, typer.Option(help="Tasks, repeatable; all if absent.")] = None,
    checkpoint: Annotated[Path, typer.Option(help="Folder of the model.")] = CHECKPOINT,
    save: Annotated[bool, typer.Option(help="Write evaluation.json beside the checkpoint.")] = False,
) -> None:
    """Evaluate and print."""
    torch.set_num_threads(1)
    found = accuracy(Judge(checkpoint), held_out(n, task or tuple(GENERATORS), screens))
    table = Table("task", "visual tokens", "n", "right", "accuracy", "95% interval")
    for name, row in found.items():
        low, high = row["interval"]
        tokens = "{} to {}".format(*row["tokens"])
        table.add_row(
            name, tokens, str(row["n"]), str(row["right"]), f"{row['accuracy']:.3f}", f"{low:.3f} - {high:.3f}"
        )
    Console().print(table)
    if save:
        import transformers

        about = {"command": command_line("benchmarks.demo_model.evaluate"),
                 "hardware": f"{os.cpu_count()} cores, {platform.machine()}", "torch": torch.__version__,
                 "transformers": transformers.__version__}  # fmt: skip
        (FOLDER / "evaluation.json").write_text(json.dumps({**about, "tasks": found}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
