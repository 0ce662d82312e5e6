"""The table of the README: what five budgets gained, what they cost in right answers, and on which hardware."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from .files import NOT_MEASURED, read, table
from .quality import DEFAULTS, accuracy, default_of, percent

HEAD = [
    "budget", "throughput, stock vLLM = 1", "of what arithmetic allows", "right answers, demo model",
    "speed measured on",
]  # fmt: skip
KEEP, IN_FLIGHT = 0.25, 8
FILES = ("speed.json", "speed_matrix.json", "gpu_stts_speed.json", "kv.json", "quality.json")


def table_rows(results: Path) -> list[list[str]]:
    """Off, a quarter of a screenshot's and of a video's visual tokens, a fifth of the cache; and one row of a GPU."""
    return [_off(results), _screenshot(results), _video(results), _kv(results), _on_gpu(results)]


def table_or_note(results: Path) -> str:
    """The table, or a note where a result is missing."""
    if not all((results / name).exists() for name in FILES):
        return NOT_MEASURED
    return table(HEAD, table_rows(results))


def _off(results: Path) -> list[str]:
    result = read(results / "speed_matrix.json")
    ratios = [row["throughput_ratio"] for cell in result["loads"] for row in cell["rows"] if row["arm"] == "off"]
    speed = _ratio(statistics.median(ratios), min(ratios), max(ratios))
    loads = len(ratios)
    return ["none", speed, "-", _shares(results, "unpruned", None), f"{_machine(result)}, {loads} loads"]


def _screenshot(results: Path) -> list[str]:
    result = read(results / "speed.json")
    cell = result["loads"][1]
    (row,) = (row for row in cell["rows"] if row["arm"] == f"keep {KEEP:g}")
    where = f"{_machine(result)}, one screenshot of {cell['visual_tokens']:,} visual tokens, {_in_flight(cell)}"
    return [f"keep {KEEP:.0%} of images", _speed(row), _bound(row), _right(results, "visual", "images"), where]


def _video(results: Path) -> list[str]:
    result = read(results / "speed_matrix.json")
    (cell,) = (one for one in result["loads"] if (one["workload"], one["concurrency"]) == ("video", IN_FLIGHT))
    rows = {row["arm"]: row for row in cell["rows"]}
    ours, theirs = rows[f"keep {KEEP:.0%} in the tower"], rows[f"evs {KEEP:.0%}"]
    where = f"{_machine(result)}, one video of {cell['visual_tokens']:,} visual tokens, {_in_flight(cell)}"
    speed = f"{_speed(ours)}; vLLM's EVS {_speed(theirs)}"
    return [f"keep {KEEP:.0%} of videos", speed, _bound(ours), _right(results, "video", "videos"), where]


def _speed(row: dict[str, Any]) -> str:
    return _ratio(row["throughput_ratio"], row["throughput_lowest"], row["throughput_highest"])


def _bound(row: dict[str, Any]) -> str:
    return f"{row['share_of_ratio_bound']:.0%} of {row['ratio_bound']:.2f}x"


def _right(results: Path, part: str, kind: str) -> str:
    """Right answers of a modality by its default strategy."""
    name = default_of(results, part, KEEP)
    return f"{kind} {percent(accuracy(results, part, name, KEEP))} ({_place(name)})"


def _machine(result: dict[str, Any]) -> str:
    return f"{result['hardware']['device']}: {result['parameters'] / 1e6:.0f}M weights"


def _in_flight(cell: dict[str, Any]) -> str:
    return f"{cell['concurrency']} in flight"


def _on_gpu(results: Path) -> list[str]:
    """Speed of the trained scorer at the longest video."""
    result = read(results / "gpu_stts_speed.json")
    longest = max(result["results"], key=lambda one: one["cells"])
    (row,) = (row for row in longest["rows"] if row["arm"] == "keep 0.25, stts (inside the tower)")
    where = (
        f"{result['hardware']['device']}: {result['model']['parameters'] / 1e9:.1f}B weights in Qwen2.5-VL-7B's "
        f"shapes, one video of {longest['cells']:,} visual tokens"
    )
    speed = _ratio(row["throughput_ratio"], row["lowest"], row["highest"])
    return [f"keep {KEEP:.0%}, `stts`", speed, "-", _shares(results, "stts", KEEP), where]


def _kv(results: Path) -> list[str]:
    result = read(results / "kv.json")
    setting, tight = result["setting"], result["tight"]
    rounds = [
        ours / stock
        for stock, ours in zip(
            tight["requests_per_second"]["stock"], tight["requests_per_second"]["prune"], strict=True
        )
    ]
    where = (
        f"{_machine(result)}, a cache that holds two full requests of {setting['screens']} screenshots, "
        f"{setting['visual_tokens']} visual tokens each"
    )
    name = DEFAULTS["kv"]
    shares = f"{percent(accuracy(results, 'kv', name, setting['keep']))} (`{name}`)"
    whole = f"{percent(accuracy(results, 'kv', 'unpruned', None))} unpruned"
    speed = _ratio(tight["throughput_ratio"], min(rounds), max(rounds))
    return [f"keep {setting['keep']:.0%} of the KV cache", speed, "-", f"images {shares}, {whole}", where]


def _place(arm: str) -> str:
    """An arm of the accuracy tables, in words."""
    strategy, _, inside = arm.partition("@")
    return f"`{strategy}`, inside the tower" if inside else f"`{strategy}`"


def _shares(results: Path, strategy: str, keep: float | None) -> str:
    parts: dict[str, Any] = {"images": "none" if keep is None else "visual", "videos": "video"}
    shares = ", ".join(f"{kind} {percent(accuracy(results, part, strategy, keep))}" for kind, part in parts.items())
    return shares if keep is None else f"{shares} (`{strategy}`)"


def _ratio(ratio: float, low: float, high: float) -> str:
    return f"{ratio:.2f}x ({low:.2f} to {high:.2f})"
