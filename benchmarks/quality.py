"""Accuracy of the demo model over strategies and budgets: `python -m benchmarks.quality --save`.

Visual budgets on the generated screens, KV budgets on the same, and target coverage without a model. Writes JSON, CSV
and a plot under `benchmarks/results/`. Videos are left out: the model does not answer them unpruned.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from vllm_prune.sweep import Arm, Cell, Sample, kv_arms, run, visual_arms
from vllm_prune.sweep.client import Client
from vllm_prune.sweep.coverage import Target, coverage, pixel_strategies
from vllm_prune.sweep.graders import Expectation
from vllm_prune.sweep.report import rows, table, write
from vllm_prune.sweep.statistics import paired

from .servers import Server
from .speed import RESULTS, hardware
from .tasks import sample
from .tasks.draw import CELL

CHECKPOINT = Path(__file__).parent / "demo_model" / "checkpoint"
KEEPS = (0.75, 0.5, 0.25, 0.1, 0.05)
KV_KEEPS = (0.4, 0.2, 0.1, 0.05)
MARGIN = 0.1
"""By how much the default strategy has to beat random: the lower 95% bound of the paired difference in accuracy."""

AFTER_EVICTION = {"structured_outputs": {"regex": "\n[A-Za-z]+"}, "max_tokens": 8}
"""The first token of an answer comes from the full prefill, before anything is evicted. These requests begin with a
line break, so that the answer itself is decided on the evicted cache."""


def screens(n: int, extra: dict[str, Any] | None = None) -> list[Sample]:
    """The first `n` held-out screens, grouped by task.

    Args:
        n: samples.
        extra: further fields of the requests.
    """
    found = []
    for i in range(n):
        one = sample("test", i)
        request = {"messages": one.to_chat(), "max_tokens": 6, **(extra or {})}
        found.append(Sample(f"test-{i}", request, Expectation(one.answer, "exact", box_of(one)), one.task))
    return found


def box_of(one: Any) -> tuple[float, float, float, float]:
    """Pixels of the cell that holds a generated sample's answer."""
    _, row, col = one.targets[0]
    return float(col * CELL), float(row * CELL), float((col + 1) * CELL), float((row + 1) * CELL)


def target_coverage(n: int, keeps: Sequence[float] = KEEPS) -> list[dict[str, Any]]:
    """Coverage of the first `n` held-out screens by every strategy that pixels are enough for."""
    drawn = (sample("test", i) for i in track(range(n), description="coverage", transient=True))
    return coverage((Target(one.frames[0], box_of(one)) for one in drawn), pixel_strategies(), keeps)


def beats_random(chosen: Sequence[bool], random: Sequence[bool], margin: float = MARGIN) -> bool:
    """Whether answers under a strategy are better than under random by more than `margin`, with 95% confidence."""
    return paired(chosen, random)[1] > margin


def image_strategies(client: Client) -> list[str]:
    """What the server has for images."""
    entries = client.get("/v1/pruning/strategies")["data"]
    return [one["name"] for one in entries if "image" in one["modality"] and one["name"] != "none"]


def kv_strategies(client: Client) -> list[str]:
    """What the server has for the cache."""
    return [one["name"] for one in client.get("/v1/pruning/strategies")["data"] if one["part"] == "kv"]


def repeated(client: Client, model: str, samples: Sequence[Sample], arm: Arm, before: Cell) -> dict[str, Any]:
    """Ask one arm again, without the stored cells; how many answers differ."""
    again = run(client, model, samples, [arm])[1]
    texts = zip(before.answers, again.answers, strict=True)
    return {
        "arm": arm.name,
        "accuracies": [sum(answer.right for answer in cell.answers) / len(samples) for cell in (before, again)],
        "texts_that_differ": sum(one.text != other.text for one, other in texts),
    }


def main(
    n: Annotated[int, typer.Option(help="Held-out screens.")] = 200,
    store: Annotated[Path | None, typer.Option(help="Folder of finished cells, to go on from.")] = None,
    save: Annotated[bool, typer.Option(help="Write quality.json, .csv and .png under benchmarks/results/.")] = False,
) -> None:
    """Measure and print."""
    console, visual, kv = Console(width=150), screens(n), screens(n, AFTER_EVICTION)
    log = Path(tempfile.mkdtemp(prefix="vllm-prune-quality-")) / "server.log"
    with Server(CHECKPOINT, "prune", ["--max-num-seqs", "16"], log=log) as server:
        client, model = Client(server.url, concurrency=8), server.model_name
        arms = visual_arms(image_strategies(client), KEEPS)
        cells = run(client, model, visual, arms, store)
        kv_cells = run(client, model, kv, kv_arms(kv_strategies(client), KV_KEEPS), store)
        default = next(cell for cell in cells if (cell.arm.strategy, cell.arm.keep) == ("divprune", 0.5))
        again = repeated(client, model, visual, default.arm, default)
    found, kv_found = rows(cells, visual), rows(kv_cells, kv)
    for row in kv_found:
        # Both halves have an unpruned arm; this one is of the other requests.
        row["part"] = "kv" if row["part"] == "none" else row["part"]
    about = {
        "command": "python -m benchmarks.quality " + " ".join(sys.argv[1:]), "hardware": hardware(), "samples": n,
        "repeated": again, "coverage": target_coverage(n),
    }  # fmt: skip
    console.print(table(found, f"visual, {n} screens"))
    console.print(table(kv_found, f"KV, {n} screens, answers after a line break"))
    console.print(again)
    if save:
        write(RESULTS, [*found, *kv_found], about, "quality")


if __name__ == "__main__":
    typer.run(main)
