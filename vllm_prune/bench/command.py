"""The `bench` command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import __version__
from ..sweep.client import Client
from ..sweep.samples import read_jsonl
from .load import Load, Report, measure
from .mix import MixError, parse_mix
from .pictures import messages, screens


@dataclass(frozen=True)
class Options:
    """Values from the command line.

    Attributes:
        url: of the server.
        data: JSONL as for `sweep`; generated screenshots when None.
        mix: see `parse_mix`.
        requests: to send.
        tokens: to generate per request.
        rate: requests per second, None for all at once.
        concurrency: most requests in flight.
        size: width and height of generated screenshots.
        seed: of screenshots, assignment and arrivals.
        out: JSON file of the result, None for none.
    """

    url: str
    data: Path | None
    mix: str
    requests: int
    tokens: int
    rate: float | None
    concurrency: int
    size: tuple[int, int]
    seed: int
    out: Path | None


def bench(options: Options) -> Report:
    """Run, print the table, write the JSON.

    Raises:
        BenchError, MixError, SweepError, DataError: with what to change.
    """
    mix = parse_mix(options.mix)
    if min(options.size) < 56:
        raise MixError("screenshots are at least 56 pixels wide and high")
    client = Client(options.url)
    model = str(client.get("/v1/models")["data"][0]["id"])
    rate = options.rate if options.rate is not None else float("inf")
    load = Load(client.url, model, _chats(options), mix, options.tokens, rate, options.concurrency, options.seed)
    report = asyncio.run(measure(load))
    show(report, f"{options.requests} requests, {model}")
    if options.out is not None:
        setting = {**vars(options), "data": str(options.data or ""), "out": "", "model": model}
        text = json.dumps({"vllm-prune": __version__, "setting": setting, **report.as_dict()}, indent=1)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    return report


def _chats(options: Options) -> list[list[dict[str, Any]]]:
    if options.data is None:
        pictures = screens(*options.size, options.seed)
        return [messages(picture) for picture in islice(pictures, options.requests)]
    chats = [sample.body()["messages"] for sample in read_jsonl(options.data, options.requests)]
    return [chats[i % len(chats)] for i in range(options.requests)]


def show(report: Report, title: str) -> None:
    """Print the classes, the peaks and the errors."""
    console = Console()
    table = Table("class", "requests", "req/s", "TTFT ms", "ITL ms", "E2E ms", "prompt", "visual kept", "rows evicted",
                  title=f"{title} (p50 / p95 / p99)")  # fmt: skip
    for row in report.classes:
        failed = f" ({row['failed']} failed)" if row["failed"] else ""
        table.add_row(
            row["class"], f"{row['requests']}{failed}", f"{row['requests_per_second']:.2f}",
            *(_times(row, key) for key in ("ttft", "itl", "e2e")), *_tokens(row),
        )  # fmt: skip
    console.print(table)
    peaks = report.peaks
    console.print(
        f"{report.seconds:.1f} s; peak KV use {peaks.kv_usage:.1%}, {peaks.running} requests running at most, "
        f"{peaks.preemptions} preemptions ({peaks.samples} readings of /metrics)"
    )
    for error in report.errors:
        console.print(f"failed: {error}", style="red", markup=False)


def _times(row: Mapping[str, Any], key: str) -> str:
    values = [row.get(f"{key}_p{p}_ms") for p in (50, 95, 99)]
    return " / ".join("-" if value is None else f"{value:.0f}" for value in values)


def _tokens(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "prompt_tokens" not in row:
        return ("-", "-", "-")
    kept = f"{row['visual_kept_tokens']:.0f} of {row['visual_input_tokens']:.0f}"
    return f"{row['prompt_tokens']:.0f}", kept, f"{row['kv_evicted_rows']:.0f}"
