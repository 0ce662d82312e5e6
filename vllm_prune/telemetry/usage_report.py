"""The parts of `usage.pruning`, from the processor's reports on media items and the scheduler's on KV eviction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..grid import Grid, bitmap


def visual_report(items: Sequence[Mapping[str, Any]], return_kept: bool = False) -> dict[str, Any] | None:
    """Strategy and token counts over the media of a request; None for a request without media.

    Args:
        items: the processor's reports, in prompt order.
        return_kept: whether to name the kept tokens of each item under `items`.
    """
    if not items:
        return None
    used = sorted({item["strategy"] for item in items if item["strategy"] != "none"}) or ["none"]
    report: dict[str, Any] = {
        "strategy": "+".join(used),
        "input_tokens": sum(item["input_tokens"] for item in items),
        "kept_tokens": sum(item["kept_tokens"] for item in items),
    }
    return {**report, "items": [_item(item) for item in items]} if return_kept else report


def _item(item: Mapping[str, Any]) -> dict[str, Any]:
    grid = _grid(item)
    return {
        "modality": item["modality"],
        "grid": None if grid is None else [grid.frames, grid.rows, grid.cols],
        "input_tokens": item["input_tokens"],
        "kept_tokens": item["kept_tokens"],
        "strategy": item["strategy"],
        "kept": None if grid is None else _kept(item, grid),
    }


def _grid(item: Mapping[str, Any]) -> Grid | None:
    """The grid, where the visual tokens of the item are its cells and nothing else; of a resized one that it became."""
    grid, tokens = item.get("grid"), item["kept_tokens" if item.get("resized") else "input_tokens"]
    return grid if grid is not None and grid.tokens == tokens else None


def _kept(item: Mapping[str, Any], grid: Grid) -> str | None:
    if item["kept_tokens"] == grid.tokens:
        return bitmap(range(grid.tokens), grid.tokens)
    return item.get("kept")


def unknown_kept(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of items whose kept tokens only the worker that chose them knows."""
    grids = ((item, _grid(item)) for item in items if not item["kept"])
    unknown = (item for item, grid in grids if grid is not None and item["kept_tokens"] < grid.tokens)
    return list(dict.fromkeys(item["kept_key"] for item in unknown))


def kv_report(tallies: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What eviction did to a request: sums over its choices, lengths of its longest prompt; None before it ends."""
    if not tallies:
        return None
    longest = max(tallies, key=lambda tally: tally["prompt_tokens"])
    sums = {key: sum(tally[key] for tally in tallies) for key in ("evicted_tokens", "freed_blocks", "compactions")}
    report = {key: longest[key] for key in ("strategy", "prompt_tokens", "kept_tokens")} | sums
    groups = [dict(group) for group in longest.get("layer_groups", ())]
    for number, group in enumerate(groups):
        group["freed_blocks"] = sum(tally["layer_groups"][number]["freed_blocks"] for tally in tallies)
    return report | ({"layer_groups": groups} if groups else {})
