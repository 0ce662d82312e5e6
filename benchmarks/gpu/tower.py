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


def command(context: Context) -> list[str]:
    """An interpreter of its own, so that the memory is free again afterwards."""
    return [sys.executable, "-m", "benchmarks.gpu.tower_child", context.scale.name]


def run(context: Context) -> None:
    """Run the child and put the prediction beside what it measured, also where it did not come to its end."""
    visual.close(context)
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} | ({} if context.scale.cuda else ON_CPU)
    log = context.work / "tower.log"
    with context.part("engine"), log.open("w") as sink:
        done = subprocess.run(
            command(context), stdout=sink, stderr=subprocess.STDOUT, timeout=max(1.0, context.clock.left),
            env=environment, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {log.read_text(errors='replace')[-4000:]}")
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(MARK)]
    context.result["results"] = results = [json.loads(line.removeprefix(MARK)) for line in lines]
    whole: dict[int, Any] = {}
    for row in results:
        first = whole.setdefault(row["frames"], row)
        row |= {
            "request_ratio": first["seconds"] / row["seconds"],
            "tower_ratio": _span(first) / _span(row),
            "predicted_tower_ratio": first["operations"] / row["operations"],
            "launch_share": row["tower"]["launch"] / _span(row),
        }
        if "speeds" in context.shared:
            row["least_tower_seconds"] = row["operations"] / context.shared["speeds"]["flops"]


def _span(row: dict[str, Any]) -> float:
    return float(row["tower"].get("device_span", row["tower"]["processor_span"]))
