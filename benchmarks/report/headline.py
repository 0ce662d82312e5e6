"""The table of the README: what four budgets gained, what they cost in right answers, and on which hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import NOT_MEASURED, read, table
from .quality import DEFAULTS, accuracy, default_of, percent

HEAD = ["budget", "throughput, stock vLLM = 1", "right answers, demo model", "speed measured on"]


def table_rows(results: Path) -> list[list[str]]:
    """Off, half of the visual tokens, a quarter inside the tower, a fifth of the cache."""
    return [_off(results), _behind_tower(results), _in_tower(results), _kv(results)]


def table_or_note(results: Path) -> str:
    """The table, or a note where a result is missing."""
    files = ("off_cost.json", "gpu_stts_speed.json", "kv.json", "quality.json")
    if not all((results / name).exists() for name in files):
        return NOT_MEASURED
    return table(HEAD, table_rows(results))


def _off(results: Path) -> list[str]:
    result = read(results / "off_cost.json")
    latency, setting = result["stock_over_off"]["latency"], result["setting"]
    where = (
        f"{result['hardware']['device']}: {result['parameters'] / 1e6:.0f}M weights, one screenshot of "
        f"{setting['visual_tokens']:,} visual tokens"
    )
    shares = _shares(results, "unpruned", None)
    return ["none", _ratio(latency["ratio"], latency["low"], latency["high"]), shares, where]


def _behind_tower(results: Path) -> list[str]:
    speed, where = _on_gpu(results, "keep 0.5, behind the tower")
    return ["keep 50% of the visual tokens", f"{speed}, `uniform`", _of_defaults(results, 0.5), where]


def _in_tower(results: Path) -> list[str]:
    speed, where = _on_gpu(results, "keep 0.25, stts (inside the tower)")
    return ["keep 25%, chosen inside the vision tower", f"{speed}, `stts`", _shares(results, "stts", 0.25), where]


def _on_gpu(results: Path, arm: str) -> tuple[str, str]:
    """Speed of an arm at the longest video, and what it was measured on."""
    result = read(results / "gpu_stts_speed.json")
    longest = max(result["results"], key=lambda one: one["cells"])
    (row,) = (row for row in longest["rows"] if row["arm"] == arm)
    where = (
        f"{result['hardware']['device']}: {result['model']['parameters'] / 1e9:.1f}B weights in Qwen2.5-VL-7B's "
        f"shapes, one video of {longest['cells']:,} visual tokens"
    )
    return _ratio(row["throughput_ratio"], row["lowest"], row["highest"]), where


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
        f"{result['hardware']['device']}: {result['parameters'] / 1e6:.0f}M weights, a cache that holds two full "
        f"requests of {setting['screens']} screenshots, {setting['visual_tokens']:,} visual tokens each"
    )
    names = dict.fromkeys((DEFAULTS["kv"], "gui_kv"))
    shares = ", ".join(f"{percent(accuracy(results, 'kv', name, setting['keep']))} (`{name}`)" for name in names)
    whole = f"{percent(accuracy(results, 'kv', 'unpruned', None))} unpruned"
    speed = _ratio(tight["throughput_ratio"], min(rounds), max(rounds))
    return [f"keep {setting['keep']:.0%} of the KV cache", f"{speed}, `gui_kv`", f"images {shares}, {whole}", where]


def _of_defaults(results: Path, keep: float) -> str:
    """Right answers of images and videos, each by its default strategy."""
    names = {part: default_of(results, part, keep) for part in ("visual", "video")}
    if len({*names.values()}) == 1:
        return _shares(results, names["visual"], keep)
    shares = {part: percent(accuracy(results, part, name, keep)) for part, name in names.items()}
    texts = {part: _place(name) for part, name in names.items()}
    return f"images {shares['visual']} ({texts['visual']}), videos {shares['video']} ({texts['video']})"


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
