"""Accuracy of the demo model on held-out samples: `python -m benchmarks.demo_model.evaluate --n 500`.

Greedy answers of transformers over the whole unpruned prompt, on the test split; Wilson intervals.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..tasks import Sample, sample
from ..tasks.screens import VIDEO_TASKS
from .batches import collate

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "checkpoint"


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927)."""
    share, spread = right / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def held_out(n: int, videos: int) -> list[Sample]:
    """The first `n` image samples and `videos` video samples of the test split."""
    found = [sample("test", i) for i in range(n)]
    sizes = random.Random(1)
    for i in range(videos):
        size = sizes.randint(3, 5), sizes.randint(4, 6)
        found.append(sample("test", n + i, VIDEO_TASKS[i % len(VIDEO_TASKS)], size, sizes.randint(2, 4)))
    return found


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

        batch = collate([one], self.words, random.Random(0))
        logits, labels, _ = forward(self.model, batch)
        asked = labels >= 0
        return bool((logits.argmax(-1) == labels)[asked].all())


def accuracy(judge: Judge, samples: list[Sample]) -> dict[str, dict[str, Any]]:
    """Right answers, n and interval per task, over all images, and over all videos."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for one in track(samples, description="asking", transient=True):
        right = judge.right(one)
        for name in (one.task, "videos" if one.task in VIDEO_TASKS else "images"):
            counts[name][0] += right
            counts[name][1] += 1
    return {
        name: {"right": right, "n": n, "accuracy": right / n, "interval": wilson(right, n)}
        for name, (right, n) in sorted(counts.items())
    }


def main(
    n: Annotated[int, typer.Option(help="Image samples.")] = 500,
    videos: Annotated[int, typer.Option(help="Video samples.")] = 200,
    checkpoint: Annotated[Path, typer.Option(help="Folder of the model.")] = CHECKPOINT,
    save: Annotated[bool, typer.Option(help="Write evaluation.json beside the checkpoint.")] = False,
) -> None:
    """Evaluate and print."""
    torch.set_num_threads(1)
    found = accuracy(Judge(checkpoint), held_out(n, videos))
    table = Table("task", "n", "right", "accuracy", "95% interval")
    for name, row in found.items():
        low, high = row["interval"]
        table.add_row(name, str(row["n"]), str(row["right"]), f"{row['accuracy']:.3f}", f"{low:.3f} - {high:.3f}")
    Console().print(table)
    if save:
        import transformers

        about = {"command": "python -m benchmarks.demo_model.evaluate " + " ".join(sys.argv[1:]),
                 "hardware": f"{os.cpu_count()} cores, {platform.machine()}", "torch": torch.__version__,
                 "transformers": transformers.__version__}  # fmt: skip
        (FOLDER / "evaluation.json").write_text(json.dumps({**about, "tasks": found}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
