"""Step `tower`: where a pruned video's time goes inside the engine, see `tower_child`, against what arithmetic says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from . import visual
from .runner import Context
from .scale import ON_CPU
from .tower_child import MARK

EAGER, GRAPHS = "engine", "encoder graphs"


def command(context: Context, part: str) -> list[str]:
    """An interpreter of its own, so that the memory is free again afterwards."""
    way = "graphs" if part == GRAPHS else "eager"
    return [sys.executable, "-m", "benchmarks.gpu.tower_child", context.scale.name, way]


def run(context: Context) -> None:
    """Run the children and put the predictions beside what they measured, also where one did not come to its end."""
    visual.close(context)
    context.result["results"] = results = _rows(context, EAGER)
    _compare(results, context.shared.get("speeds"))
    graphed = _rows(context, GRAPHS)
    _compare_graphs(graphed, results)
    results += graphed


def _rows(context: Context, part: str) -> list[dict[str, Any]]:
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} | ({} if context.scale.cuda else ON_CPU)
    log = context.work / f"tower {part}.log"
    with context.part(part), log.open("w") as sink:
        done = subprocess.run(
            command(context, part), stdout=sink, stderr=subprocess.STDOUT, timeout=max(1.0, context.clock.left),
            env=environment, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {log.read_text(errors='replace')[-4000:]}")
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(MARK)]
    return [json.loads(line.removeprefix(MARK)) for line in lines]


def _compare(results: list[dict[str, Any]], speeds: dict[str, Any] | None) -> None:
    whole: dict[int, Any] = {}
    for row in results:
        first = whole.setdefault(row["frames"], row)
        row |= {
            "request_ratio": first["seconds"] / row["seconds"],
            "tower_ratio": _span(first) / _span(row),
            "predicted_tower_ratio": first["operations"] / row["operations"],
            "launch_share": row["tower"]["launch"] / _span(row),
        }
        if speeds is not None:
            row["least_tower_seconds"] = row["operations"] / speeds["flops"]


def _compare_graphs(results: list[dict[str, Any]], eager: list[dict[str, Any]]) -> None:
    whole: dict[int, Any] = {}
    without = {(row["frames"], row["arm"]): row["seconds"] for row in eager}
    for row in results:
        first = whole.setdefault(row["frames"], row)
        row["request_ratio"] = first["seconds"] / row["seconds"]
        if (row["frames"], row["arm"]) in without:
            row["over_eager"] = without[row["frames"], row["arm"]] / row["seconds"]


def _span(row: dict[str, Any]) -> float:
    return float(row["tower"].get("device_span", row["tower"]["processor_span"]))
