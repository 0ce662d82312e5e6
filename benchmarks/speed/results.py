"""What a run prints and writes: the tables of its loads, and a file that is whole after every round."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..machine import RESULTS

SO_FAR = RESULTS.parents[1] / "build"
"""Folder of results that are written while a run goes on."""


@dataclass
class ResultFile:
    """The result of a run, on disk after every round.

    Attributes:
        name: of the file, without its suffix.
        about: what is said in any case: command, machine, setting.
        result: what is measured so far.
        folder: where it is written while the run goes on.
        joined: whether `finish` leaves loads of the saved file that this run has not measured.
    """

    name: str
    about: dict[str, Any]
    result: dict[str, Any] = field(default_factory=dict)
    folder: Path = SO_FAR
    joined: bool = False

    @property
    def path(self) -> Path:
        """The file that is written while the run goes on."""
        return self.folder / f"{self.name}.json"

    def write(self, result: dict[str, Any]) -> None:
        """Replace what is on disk."""
        self.result = result
        _write(self.path, self.about | {"finished": False} | result)

    def finish(self, save: bool) -> Path:
        """The run has ended: write the result, with `save` among the committed ones; the path."""
        _write(self.path, self.about | {"finished": True} | self.result)
        if not save:
            return self.path
        _write(self._saved, self._joined(self.about | self.result))
        return self._saved

    def check(self) -> None:
        """Raise ValueError where `finish` could not save, as loads of different machines would be joined."""
        self._joined(self.about | {"speeds": {}, "loads": []})

    @property
    def _saved(self) -> Path:
        return RESULTS / f"{self.name}.json"

    def _joined(self, result: dict[str, Any]) -> dict[str, Any]:
        if not self.joined:
            return result
        saved = json.loads(self._saved.read_text()) if self._saved.exists() else result
        return joined(saved, result)


def joined(saved: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """A result with the loads of a saved one that it has not measured; each load says which run it comes from.

    Raises:
        ValueError: the saved one is of another machine, of other versions or of another model.
    """
    for key in ("hardware", "parameters"):
        if saved[key] != result[key]:
            raise ValueError(f"{key} of the saved result are {saved[key]}, of this one {result[key]}")
    loads = {
        (cell["workload"], cell["concurrency"]): {"command": one["command"], "speeds": one["speeds"]} | cell
        for one in (saved, result) for cell in one["loads"]
    }  # fmt: skip
    return result | {"loads": list(loads.values())}


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    # A reader, or an end in the middle of it, never meets half a file.
    part.replace(path)


def few(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Result of the few arms, from one load alone and one under load; no rows until both have some.

    Rows have the time to the first token of one request alone, and throughput under load.
    """
    rows = []
    alone, loaded = [{row["arm"]: row for row in cell["rows"]} for cell in cells] if len(cells) == 2 else ({}, {})
    for name in [name for name in alone if name in loaded]:
        one, many = alone[name], loaded[name]
        rows.append({
            "arm": name, "prompt_tokens": int(many["prompt_tokens"]), "ttft": one["ttft_p50_ms"] / 1000,
            "requests_per_second": many["requests_per_second"], "ttft_ratio": one["ttft_ratio"],
            "throughput_ratio": many["throughput_ratio"], "ttft_bound": one.get("ratio_bound"),
            "throughput_bound": many.get("ratio_bound"),
        })  # fmt: skip
    return {"rows": rows, "loads": list(cells)}


def show(cell: dict[str, Any], note: str) -> None:
    """Print the table of one load, with how many rounds its medians are of."""
    rounds, wanted = cell["rounds"], cell["rounds_wanted"]
    count = f"{rounds} rounds" if rounds == wanted else f"only {rounds} of {wanted} rounds"
    title = f"{cell['workload']}, {cell['concurrency']} in flight, medians of {count}, {note}"
    table = Table(
        "arm",
        "prompt tokens",
        "TTFT p50 ms",
        "TTFT vs stock",
        "ITL p50 ms",
        "requests/s",
        "vs stock",
        "bound",
        title=title,
    )
    for row in cell["rows"]:
        gap = row["itl_p50_ms"]
        table.add_row(
            row["arm"], f"{row['prompt_tokens']:.0f}", f"{row['ttft_p50_ms']:.0f}", f"{row['ttft_ratio']:.2f}x",
            "-" if gap is None else f"{gap:.1f}", f"{row['requests_per_second']:.2f}",
            f"{row['throughput_ratio']:.2f}x ({row['throughput_lowest']:.2f} to {row['throughput_highest']:.2f})",
            f"{row['ratio_bound']:.2f}x" if "ratio_bound" in row else "-",
        )  # fmt: skip
    Console(width=130).print(table)
    for arm, error in cell["errors"].items():
        Console(stderr=True, soft_wrap=True).print(f"{arm} was left out: {error}", markup=False, highlight=False)
