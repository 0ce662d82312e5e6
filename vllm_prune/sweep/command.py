"""The `sweep` command: data, arms and server put together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import __version__
from .arms import Arm, combined, kv_arms, visual_arms
from .client import Client, SweepError
from .loaders import load
from .local import serving
from .report import need_matplotlib, rows, table, write
from .run import Cell, run
from .samples import Sample


@dataclass(frozen=True)
class Options:
    """Values from the command line.

    Attributes:
        data: JSONL file, or a folder where `format` names a published layout.
        format: see `loaders`.
        url: of the server; None with `model`.
        model: to serve, None where a server runs.
        strategies: visual strategies; None takes all that fit the data.
        keep: ratios for them.
        kv: KV strategies, none when empty.
        kv_keep: ratios for them.
        combine: also run every visual arm with every KV arm.
        out: folder of the results.
        limit: samples to take.
        concurrency: requests in flight.
        fresh: run again what `out` holds already.
        coordinates: what a grounding model counts in.
    """

    data: Path
    format: str
    url: str | None
    model: str | None
    strategies: tuple[str, ...] | None
    keep: tuple[float, ...]
    kv: tuple[str, ...]
    kv_keep: tuple[float, ...]
    combine: bool
    out: Path
    limit: int | None
    concurrency: int
    fresh: bool
    coordinates: str


def sweep(options: Options) -> None:
    """Run, print the table, write the files.

    Raises:
        SweepError, DataError: with what to change.
    """
    need_matplotlib()
    samples = load(options.format, options.data, options.limit, options.coordinates)
    with ExitStack() as stack:
        url = stack.enter_context(serving(options.model)) if options.model else options.url
        client = Client(url or "http://127.0.0.1:8000", os.environ.get("OPENAI_API_KEY"), options.concurrency)
        model = str(client.get("/v1/models")["data"][0]["id"])
        arms = arms_of(options, samples, client.get("/v1/pruning/strategies"))
        store = options.out / "cells"
        for stale in store.glob("*.json") if options.fresh else ():
            stale.unlink()
        cells = run(client, model, samples, arms, store)
    show(cells, samples, options, model)


def arms_of(options: Options, samples: Sequence[Sample], catalogue: Any) -> list[Arm]:
    """The arms to run.

    Args:
        options: of the command.
        samples: decide which visual strategies fit when none are named.
        catalogue: answer of `/v1/pruning/strategies`.

    Raises:
        SweepError: a strategy that the server does not have, a ratio out of range.
    """
    entries = catalogue["data"]
    kinds = frozenset().union(*(sample.modalities for sample in samples))
    fitting = [one["name"] for one in entries if one["part"] == "visual" and kinds <= set(one["modality"])]
    visual = options.strategies if options.strategies is not None else tuple(n for n in fitting if n != "none")
    known = {(one["part"], one["name"]) for one in entries}
    unknown = {("visual", name) for name in visual} | {("kv", name) for name in options.kv}
    if unknown := unknown - known:
        raise SweepError(f"the server has no strategy {', '.join(sorted(name for _, name in unknown))}")
    if wrong := [ratio for ratio in (*options.keep, *options.kv_keep) if not 0 < ratio <= 1]:
        raise SweepError(f"ratios are above 0 and at most 1, not {wrong[0]:g}")
    arms = visual_arms(visual, options.keep) if kinds and visual else []
    kv = kv_arms(options.kv, options.kv_keep) if options.kv else []
    if not arms and not kv:
        raise SweepError("nothing to compare: the samples have no media and no --kv is given")
    return [*arms, *kv, *(combined(arms, kv) if options.combine else ())]


def show(cells: Sequence[Cell], samples: Sequence[Sample], options: Options, model: str) -> None:
    """Print the table and write the files."""
    results = rows(cells, samples)
    console = Console()
    console.print(table(results, f"{options.data.name}: {len(samples)} samples, {model}"))
    if clamped := sum(row.get("clamped", 0) for row in results if row["group"] == "all"):
        console.print(f"{clamped} answers were clamped by the server's limits; see the column clamped")
    about = {
        "data": options.data.name, "samples": len(samples), "model": model, "vllm-prune": __version__,
        "concurrency": options.concurrency,
    }  # fmt: skip
    paths = write(options.out, results, about)
    reused = sum(cell.reused for cell in cells)
    console.print(f"{reused} of {len(cells)} cells were there already; wrote {', '.join(map(str, paths))}")
