"""The README's section on STTS, from the files under `benchmarks/results/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def section(results: Path) -> str:
    """Accuracy, agreement, speed and memory; what has not been measured is left out."""
    parts = [
        part(json.loads((results / name).read_text()))
        for name, part in (
            ("stts.json", _accuracy),
            ("stts_agreement.json", _agreement),
            ("stts_speed.json", _speed),
            ("stts_speed_reuse.json", _reuse_speed),
            ("gpu_stts_speed.json", _gpu_speed),
            ("stts_memory.json", _memory),
        )
        if (results / name).exists()
    ]
    return "\n\n".join(parts) or "Not measured yet."


def frame_split(results: Path) -> str:
    """What fixing each frame's count beforehand costs."""
    path = results / "frame_split.json"
    if not path.exists():
        return "Not measured yet."
    found = json.loads(path.read_text())
    keeps, rows = found["keeps"], {(row["strategy"], row["split"], row["keep"]): row for row in found["rows"]}
    heads = [f"{name} at {keep:.0%}" for name in ("right", "shown") for keep in keeps]
    lines = ["| strategy, split | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in found["strategies"]:
        for split in ("free", *found["splits"]):
            cells = [rows[name, split, keep][measure] for measure in ("right", "shown") for keep in keeps]
            own = " (default)" if rows[name, split, keeps[0]]["default"] else ""
            lines.append(f"| `{name}`, {split}{own} | " + " | ".join(map(_difference, cells)) + " |")
    return "\n".join(lines) + (
        f"\n\nShares of {found['n']} held-out videos, same K in every row; in brackets the 95% interval of the paired "
        f"difference to the free choice over the whole video, in points. Right: greedy answers of the demo model, "
        f"which unpruned gives {found['unpruned']:.1%}. Shown: every place of the object that is asked for is kept in "
        f"some frame, whatever the model answers. The demo model has no text between frames: this is the cost of the "
        f"choice alone. {found['hardware']['device']}. Command: `{found['command']}`."
    )


def _difference(cell: dict[str, Any]) -> str:
    share = f"{cell['share']:.1%}"
    if "over_free" not in cell:
        return share
    _, low, high = cell["over_free"]
    return f"{share} ({100 * low:+.1f} to {100 * high:+.1f})"


def _accuracy(found: dict[str, Any]) -> str:
    shape = found["shape"]
    text = (
        f"Demo model, held-out samples, greedy; in brackets the 95% interval of the paired difference to the unpruned "
        f"model, in points. The scorer ({shape['hidden']} wide, {shape['after']} blocks in front of it) was trained "
        f"with the model frozen, by a reward for right answers in place of the paper's gradient. "
        f"`stts, ...` are other scorers (ablations), this one choosing over the whole video as in the paper or with "
        f"counts by pixel change, and a model that was trained along with its scorer. Pictures are screens, rendered "
        f"pages and dense screens, "
        f"videos are clips and films; `benchmarks/results/stts.json` has every task apart. "
        f"{found['hardware']['device']}. Command: `{found['command']}`."
    )
    return "\n\n".join(
        [
            *(_table(found, kind) for kind in ("pictures", "videos")),
            "![Accuracy against the share kept](benchmarks/results/stts.png)",
            text,
        ]
    )


def _table(found: dict[str, Any], kind: str) -> str:
    rows = [row for row in found["rows"] if row["kind"] == kind]
    whole = next(row for row in rows if row["arm"] == "unpruned")
    title = f"{kind}, n = {whole['n']}"
    for row in rows:
        if row["arm"].startswith("unpruned"):
            title += f", {row['arm'].replace('unpruned,', 'unpruned and')} {row['accuracy']:.1%}"
    lines = [f"| {title} | " + " | ".join(f"{keep:.0%}" for keep in found["keeps"]) + " |",
             "|---" * (len(found["keeps"]) + 1) + "|"]  # fmt: skip
    cells = {(row["arm"], row["keep"]): row for row in rows}
    arms = {row["arm"] for row in rows if not row["arm"].startswith("unpruned")}
    for name in sorted(arms, key=lambda arm: (not arm.startswith("stts"), arm)):
        shown = [_cell(cells.get((name, keep))) for keep in found["keeps"]]
        lines.append(f"| {name if ',' in name else f'`{name}`'} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    _, low, high = row["over_unpruned"]
    return f"{row['accuracy']:.1%} ({100 * low:+.1f} to {100 * high:+.1f})"


def _agreement(found: dict[str, Any]) -> str:
    worst = found["largest_logprob_difference"]
    return (
        f"Engine against training code, {found['samples']} samples at three budgets ({found['requests']} requests, "
        f"float32): {found['kept_sets_that_differ']} kept sets and {found['answers_that_differ']} answers differ; the "
        f"largest difference of a log-probability is {worst['engine_training']:.1e}. The training code in float64 is "
        f"{worst['engine_float64']:.1e} away from the engine and {worst['training_float64']:.1e} from itself in "
        f"float32: on single pictures the model amplifies rounding. "
        f"Command: `{found['command']}`."
    )


def _speed(found: dict[str, Any]) -> str:
    model = found["model"]
    return _speed_table(found, "throughput") + (
        f"\n\nRequests per second relative to the same engine without a budget, one video per request, medians of "
        f"{found['rounds']} interleaved rounds (lowest to highest), {found['dtype']}; "
        f"{model['parameters'] / 1e6:.0f}M random weights, "
        f"{model['tower'] / 1e6:.0f}M of them in the tower, both parts with the depth and proportions of "
        f"Qwen2.5-VL-3B's; scores after {found['after']} of 32 blocks. "
        f"{found['hardware']['device']}. Command: `{found['command']}`."
    )


def _reuse_speed(found: dict[str, Any]) -> str:
    return _speed_table(found, "throughput, freed memory kept") + (
        "\n\nThe same where the C library keeps freed memory, as tcmalloc would, for which `vllm-prune serve` looks. "
        "Without, as above, each large tensor comes in fresh pages from the kernel; stock, whose tensors are "
        f"largest, loses most by that. {found['hardware']['device']}. Command: `{found['command']}`."
    )


def _gpu_speed(found: dict[str, Any]) -> str:
    stock = [next(row for row in one["rows"] if row["arm"] == "stock")["seconds"] for one in found["results"]]
    return _speed_table(found, "throughput on a GPU, 7B shapes") + (
        f"\n\nThe same on one {found['hardware']['device']}, {found['dtype']}, eager, with random weights in the "
        f"shapes of Qwen2.5-VL-7B ({found['model']['parameters'] / 1e9:.1f}B). The processor's work is left out, as a "
        f"server does it in processes of its own. Stock's requests took "
        f"{' and '.join(f'{one:.2f} s' for one in stock)}, 4 decoded tokens included. "
        f"torch {found['hardware']['torch']}. Command: `{found['command']}`."
    )


def _speed_table(found: dict[str, Any], title: str) -> str:
    results = found["results"]
    heads = [f"{one['frames']} frames of {one['side']} px ({one['cells']} tokens)" for one in results]
    lines = [f"| {title} | " + " | ".join(heads) + " |", "|---" * (len(results) + 1) + "|"]
    for index, row in enumerate(results[0]["rows"]):
        if row["arm"] == "stock":
            continue
        own = [one["rows"][index] for one in results]
        shown = [f"{one['throughput_ratio']:.2f}x ({one['lowest']:.2f} to {one['highest']:.2f})" for one in own]
        lines.append(f"| {row['arm']} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _memory(found: dict[str, Any]) -> str:
    lines = ["| encoder's peak memory | above what was resident | of no budget |", "|---|---|---|"]
    lines += [f"| {row['arm']} | {row['bytes'] / 2**20:.0f} MiB | {row['of_stock']:.2f} |" for row in found["rows"]]
    return "\n".join(lines) + (
        f"\n\nOne video of {found['frames']} frames ({found['patches']} patches) through the same model's encoder, "
        f"processes of their own. vLLM's profile run still reserves for the unpruned case. "
        f"Command: `{found['command']}`."
    )
