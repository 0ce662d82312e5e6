"""The table of agreement with the authors' code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import NOT_MEASURED, read, table

HEAD = ["strategy", "code at", "as published", "as served", "what differs"]


def agreement(results: Path) -> str:
    """One row per strategy that was compared."""
    result = read(results / "agreement.json")
    if result is None:
        return NOT_MEASURED
    hardware = result["hardware"]
    rows = [
        [f"`{name}`", _source(row), _figures(row["exact"]), _figures(row["usual"]), row["note"]]
        for name, row in result["strategies"].items()
    ]
    return table(HEAD, rows) + (
        "\n\nOverlap of the two kept sets (Jaccard), median and least over so many cases of clusters, smooth frames, "
        'planted content and near-duplicates, float32. "As published" are cases in which ours approximates nothing; '
        '"as served" are larger ones of width 512, with sketches, blocks and segments where a strategy uses them. '
        '"Goal" is what the method maximises (smallest distance for `divprune`, the determinant per pick for '
        "`cdpruner`), ours over theirs. Repositories under Apache-2.0, MIT or BSD-3-Clause, but for "
        "CC BY-NC 4.0: "
        f"{_noncommercial(result['strategies'])}. PyTorch {hardware['torch']}, {hardware['device']}. "
        f"Command: `{result['command']}`."
    )


def _source(row: dict[str, Any]) -> str:
    return f"{row['repository']} {row['commit'][:7]}"


def _figures(part: dict[str, Any] | None) -> str:
    if part is None:
        return "the same"
    goal = f", goal {part['objective']:.2f}" if "objective" in part else ""
    return f"{part['median']:.2f}, least {part['min']:.2f} ({part['identical']} of {part['cases']} identical{goal})"


def _noncommercial(strategies: dict[str, Any]) -> str:
    return ", ".join(sorted({row["repository"] for row in strategies.values() if "NC" in row["licence"]}))
