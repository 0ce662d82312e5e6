"""Pruning beside plain resizing, where elements span several visual tokens: `python -m benchmarks.resizing --save`.

Where an element is one visual token large, as in the tasks of `benchmarks.quality`, no smaller picture can show it and
resizing loses for that reason alone. Here elements are twice as large in each direction, for every strategy alike, and
the checkpoint that answers was taught them at sizes between once and 2.2 times. Writes JSON.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vllm_prune.sweep import run
from vllm_prune.sweep.client import Client
from vllm_prune.sweep.report import table

from .machine import RESULTS, command_line, hardware
from .quality import DEMO, Table, arms, chosen, held_out, strategies
from .servers import Server

CHECKPOINT = DEMO / "enlarged"
KEEPS = (0.5, 0.25, 0.1)
TASKS = {"visual": "enlarged", "video": "enlarged_clips"}
"""Task of each part of the table."""
MODALITIES = {"visual": "image", "video": "video"}


def measure(client: Client, model: str, n: int, store: Path | None, only: list[str]) -> list[Table]:
    """Ask every strategy, or those that `only` names as PART:NAME, and the baselines of each part."""
    tables = []
    for part, task in TASKS.items():
        if names := chosen(strategies(client, MODALITIES[part]), part, only):
            samples = held_out([task], n)
            cells = run(client, model, samples, arms(names, KEEPS), store)
            tables.append(Table(f"{task}, {n} samples", part, samples, cells))
    return tables


def main(
    n: Annotated[int, typer.Option(help="Held-out samples of each task.")] = 100,
    dtype: Annotated[str, typer.Option(help="float32 is several times faster where bfloat16 is emulated.")] = "float32",
    store: Annotated[Path | None, typer.Option(help="Folder of finished cells, to go on from.")] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help="Print these alone, repeatable: visual:NAME or video:NAME; not saved.")
    ] = None,
    save: Annotated[bool, typer.Option(help="Write benchmarks/results/resizing.json.")] = False,
) -> None:
    """Measure and print."""
    if save and strategy:
        raise typer.BadParameter("--save writes the whole table; leave --strategy out, finished cells are reused")
    console = Console(width=150)
    log = Path(tempfile.mkdtemp(prefix="vllm-prune-resizing-")) / "server.log"
    with Server(CHECKPOINT, "prune", ["--max-num-seqs", "16", "--dtype", dtype], log=log) as server:
        tables = measure(Client(server.url, concurrency=8), server.model_name, n, store, strategy or [])
    rows = [row for one in tables for row in one.rows()]
    for one in tables:
        console.print(table(one.rows(), one.title))
    if save:
        about = {"command": command_line("benchmarks.resizing"), "hardware": hardware(),
                 "samples": n, "dtype": dtype}  # fmt: skip
        (RESULTS / "resizing.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
