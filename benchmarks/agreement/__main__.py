"""Compare the strategies with their authors' public code, set by set."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..machine import RESULTS, hardware
from .entries import ENTRIES, Entry


def jaccard(one: Tensor, other: Tensor) -> float:
    """Size of the intersection of two sets over that of their union."""
    first, second = set(one.tolist()), set(other.tolist())
    return len(first & second) / len(first | second)


def compare(name: str, entry: Entry, code: dict[str, Any], cases: Iterable[Any]) -> dict[str, Any]:
    """Agreement over some cases: their number, how many are identical, the median and the least agreement."""
    agreements, gains = [], []
    for drawn in cases:
        case = entry.prepare(drawn)
        theirs = entry.theirs(code, case)
        ours = entry.ours(name, case, len(theirs))
        agreements.append(jaccard(theirs, ours))
        if entry.objective is not None:
            gains.append(entry.objective(case, ours) / max(1e-9, entry.objective(case, theirs)))
    result = {
        "cases": len(agreements),
        "identical": sum(value == 1 for value in agreements),
        "median": round(statistics.median(agreements), 3),
        "min": round(min(agreements), 3),
    }
    return result | ({"objective": round(statistics.median(gains), 3)} if gains else {})


def measure(name: str, entry: Entry, directory: Path) -> dict[str, Any]:
    """One strategy's figures."""
    code, last = entry.code(directory), entry.sources[-1]
    exact = compare(name, entry, code, entry.exact())
    return {
        "repository": last.repository,
        "commit": last.commit,
        "licence": last.licence,
        "exact": exact,
        "usual": None if entry.usual is None else compare(name, entry, code, entry.usual()),
        "note": entry.note,
    }


def main() -> None:
    """Measure, print, and save on request."""
    parser = argparse.ArgumentParser("python -m benchmarks.agreement", description=__doc__)
    parser.add_argument(
        "--authors", type=Path, required=True, metavar="DIR",
        help="holds a checkout of each repository under its name, at the commit in benchmarks/agreement/entries.py; "
        "its code is run",
    )  # fmt: skip
    parser.add_argument("--strategy", nargs="+", choices=sorted(ENTRIES), default=sorted(ENTRIES))
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/agreement.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / "agreement.json"
    kept = json.loads(file.read_text())["strategies"] if file.exists() else {}
    for name in arguments.strategy:
        start = time.monotonic()
        kept[name] = measure(name, ENTRIES[name], arguments.authors)
        print(f"{name:9} {time.monotonic() - start:5.1f} s  {kept[name]['exact']}  {kept[name]['usual']}", flush=True)
    if arguments.save:
        result = {
            "command": "python -m benchmarks.agreement --authors DIR --save",
            "hardware": hardware(),
            "strategies": dict(sorted(kept.items())),
        }
        file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
