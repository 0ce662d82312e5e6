"""The account of kernels that would pay on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import NOT_MEASURED, read, table


def account(results: Path) -> str:
    """One row per step and model, one column per kind of request."""
    result = read(results / "kernel_account.json")
    if result is None:
        return NOT_MEASURED
    by_case = {(row["step"], row["model"], row["media"]): row for row in result["rows"]}
    media = list(dict.fromkeys(row["media"] for row in result["rows"]))
    lines = []
    for name, model in dict.fromkeys((row["step"], row["model"]) for row in result["rows"]):
        cells = [by_case.get((name, model, one)) for one in media]
        kernel = next(row["kernel"] for row in cells if row is not None)
        lines.append([name, kernel, model, *map(_cell, cells)])
    return table(["step", "in the tree", "shapes of", *media], lines) + (
        f"\n\nKernels and megabytes of the code as it is (least megabytes in brackets), the milliseconds that they "
        f"take at least, and how much of a request could be saved at most; bold where that is more than "
        f"{result['pays_above']:.0%}. Arithmetic, no measurement: {result['bytes_per_second'] / 1e12:g} TB/s and "
        f"{result['operations_per_second'] / 1e12:g} TFLOP/s of an H100, {result['launch_seconds'] * 1e6:g} us from "
        f"one launched kernel to the next and {result['dependent_step_seconds'] * 1e6:g} us for a dependent step "
        f"inside one (both assumed). A request is the least time of tower, prefill and {result['answer_tokens']} "
        f"decoded tokens with {result['in_flight']} in flight; a ring's is one decode step. Real requests take longer, "
        f"so their shares are smaller. Command: `{result['command']}`."
    )


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    moved, floor = row["bytes"] / 1e6, row["floor_bytes"] / 1e6
    share = f"**{row['gain']:.1%}**" if row["pays"] else f"{row['gain']:.1%}"
    return f"{row['kernels']:,} kernels, {moved:,.0f} MB ({floor:,.0f}), {row['seconds'] * 1e3:.2f} ms, {share}"
