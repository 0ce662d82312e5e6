"""Tables of cells: rows, CSV, JSON, a plot, and what the terminal shows."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from .arms import BASELINES, UNPRUNED, Arm
from .client import Answer, SweepError
from .run import Cell
from .samples import Sample
from .statistics import paired, wilson

ALL = "all"


def rows(cells: Sequence[Cell], samples: Sequence[Sample], seed: int = 0) -> list[dict[str, Any]]:
    """One row per cell and group of samples; `all` is every sample.

    Shares are out of 1, tokens are means per sample. `difference` is to the unpruned arm, `over_random` and its like to
    a baseline at the same ratio, all paired by sample with 95% bootstrap intervals.

    Args:
        cells: from `run`; the first is unpruned.
        samples: what they answered.
        seed: of the bootstrap.
    """
    groups: dict[str, list[int]] = {ALL: list(range(len(samples)))}
    named = {sample.group for sample in samples if sample.group}
    if len(named) > 1:
        groups |= {name: [i for i, sample in enumerate(samples) if sample.group == name] for name in sorted(named)}
    by_arm = {(cell.arm.part, cell.arm.strategy, cell.arm.keep): cell for cell in cells}
    results = []
    for cell in cells:
        names = BASELINES.get(cell.arm.part, ())
        baselines = {name: by_arm.get((cell.arm.part, name, cell.arm.keep)) for name in names}
        answered = {name: baseline for name, baseline in baselines.items() if baseline is not None and baseline.answers}
        for group, members in groups.items():
            results.append(_row(cell, cells[0], answered, group, members, seed))
    return results


def _row(
    cell: Cell, unpruned: Cell, baselines: Mapping[str, Cell], group: str, members: Sequence[int], seed: int
) -> dict[str, Any]:
    head: dict[str, Any] = {"part": cell.arm.part, "strategy": cell.arm.strategy, "keep": cell.arm.keep, "group": group}
    if cell.refusal:
        return {**head, "n": 0, "refused": cell.refusal}
    answers = [cell.answers[i] for i in members]
    right = [answer.right for answer in answers]
    low, high = wilson(sum(right), len(right))
    row = {
        **head, "n": len(right), "right": sum(right), "accuracy": sum(right) / len(right), "accuracy_low": low,
        "accuracy_high": high, **_compared("difference", right, unpruned, members, seed),
    }  # fmt: skip
    for name, baseline in baselines.items():
        row |= _compared(f"over_{name}", right, baseline, members, seed)
    return row | _cost(cell.arm, answers)


def _compared(name: str, right: Sequence[bool], other: Cell, members: Sequence[int], seed: int) -> dict[str, float]:
    mean, low, high = paired(right, [other.answers[i].right for i in members], seed)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _cost(arm: Arm, answers: Sequence[Answer]) -> dict[str, Any]:
    visual_input = sum(answer.visual_input for answer in answers)
    dropped = visual_input - sum(answer.visual_kept for answer in answers)
    cached, evicted = sum(answer.kv_rows for answer in answers), sum(answer.kv_evicted for answer in answers)
    total = {"visual": visual_input, "kv": cached, "both": cached + dropped}.get(arm.part, 0)
    lost = {"visual": dropped, "kv": evicted, "both": dropped + evicted}.get(arm.part, 0)
    return {
        "kept_share": 1 - lost / total if total else 1.0,
        "prompt_tokens": fmean(answer.prompt_tokens for answer in answers),
        "visual_input_tokens": fmean(answer.visual_input for answer in answers),
        "visual_kept_tokens": fmean(answer.visual_kept for answer in answers),
        "kv_rows": fmean(answer.kv_rows for answer in answers),
        "kv_evicted_rows": fmean(answer.kv_evicted for answer in answers),
        "clamped": sum(answer.clamped for answer in answers),
    }


def write(
    folder: Path, results: Sequence[Mapping[str, Any]], about: Mapping[str, Any], name: str = "sweep"
) -> list[Path]:
    """Write `NAME.csv`, `NAME.json` and `NAME.png` under `folder`; returns their paths.

    Args:
        folder: made when missing.
        results: from `rows`.
        about: further fields of the JSON.
        name: of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("csv", "json", "png")]
    columns = list(dict.fromkeys(key for row in results for key in row))
    with paths[0].open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(results)
    paths[1].write_text(json.dumps({**about, "rows": list(results)}, indent=1) + "\n", encoding="utf-8")
    plot(paths[2], results)
    return paths


def need_matplotlib() -> None:
    """Whether the plot can be drawn, before any request is sent.

    Raises:
        SweepError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SweepError("the plot needs matplotlib: pip install 'vllm-prune[bench]'") from None


def plot(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy against the share kept: one panel per part, one line per strategy, Wilson intervals as bars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    whole = [row for row in results if row["group"] == ALL and row["n"]]
    unpruned = whole[0]
    parts = list(dict.fromkeys(row["part"] for row in whole if row["part"] != "none")) or ["none"]
    figure = Figure(figsize=(6.4 * len(parts), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    labels = {"visual": "visual tokens kept", "kv": "cached rows kept", "both": "tokens and rows kept"}
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        inside = [row for row in whole if row["part"] == part]
        reference = next((row for row in inside if row["strategy"] == UNPRUNED.strategy), unpruned)
        axes.axhline(reference["accuracy"], color="black", linewidth=0.8, label="unpruned")
        for strategy in dict.fromkeys(row["strategy"] for row in inside if row is not reference):
            _line(axes, [row for row in inside if row["strategy"] == strategy], strategy)
        axes.set(xlabel=labels.get(part, part), ylabel="accuracy", ylim=(-0.02, 1.02), xlim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _line(axes: Any, points: Sequence[Mapping[str, Any]], label: str) -> None:
    points = sorted(points, key=lambda row: row["kept_share"])
    shares, accuracies = [row["kept_share"] for row in points], [row["accuracy"] for row in points]
    bars = [
        [max(0.0, row["accuracy"] - row["accuracy_low"]) for row in points],
        [max(0.0, row["accuracy_high"] - row["accuracy"]) for row in points],
    ]
    style = "--" if label in BASELINES["visual"] else "-"
    axes.errorbar(shares, accuracies, yerr=bars, label=label, linestyle=style, marker="o", markersize=3, capsize=2)


def table(results: Sequence[Mapping[str, Any]], title: str) -> Table:
    """What the terminal shows: the rows over all samples."""
    shown = Table("part", "strategy", "keep", "accuracy", "95% interval", "to unpruned", "over random", "kept",
                  "prompt tokens", title=title)  # fmt: skip
    for row in results:
        if row["group"] != ALL:
            continue
        head = (row["part"], row["strategy"], f"{row['keep']:g}")
        if not row["n"]:
            shown.add_row(*head, "refused", row["refused"])
            continue
        shown.add_row(
            *head, f"{row['accuracy']:.1%}", f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}",
            _interval(row, "difference"), _interval(row, "over_random"), f"{row['kept_share']:.1%}",
            f"{row['prompt_tokens']:.0f}",
        )  # fmt: skip
    return shown


def _interval(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return ""
    return f"{100 * row[name]:+.1f} ({100 * row[name + '_low']:+.1f} to {100 * row[name + '_high']:+.1f})"
