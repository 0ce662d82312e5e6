"""The generated parts of README.md, of docs/ and of the demo model's card; `python -m benchmarks.report` rewrites them.

A generated part stands between `<!-- NAME -->` and `<!-- /NAME -->`. Its text comes from a committed result under
benchmarks/results/, from the strategies' classes or from the settings' classes, and from nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from . import agreement, engine_results, families, headline, kernels, peers, quality, settings, speed, strategies, stts

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
EVALUATION = ROOT / "benchmarks" / "demo_model" / "evaluation.json"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "demo_model" / "README.md")

PARTS: dict[str, Callable[[], str]] = {
    "headline": lambda: headline.table_or_note(RESULTS),
    "strategy_names": strategies.names_by_kind,
    "families": families.families,
    "catalogue": strategies.visual_table,
    "kv_catalogue": strategies.kv_table,
    "options": strategies.visual_options,
    "kv_options": strategies.kv_options,
    "strategy_cost": lambda: strategies.costs(RESULTS),
    "strategy_scaling": lambda: strategies.scaling(RESULTS),
    "settings": settings.sections,
    "budgets": lambda: quality.budgets(RESULTS),
    "quality": lambda: quality.tables(RESULTS),
    "resizing": lambda: quality.resizing(RESULTS),
    "demo": lambda: quality.demo(EVALUATION),
    "evaluation": lambda: quality.evaluation(EVALUATION),
    "speed": lambda: speed.speed(RESULTS),
    "speed_matrix": lambda: speed.matrix(RESULTS),
    "speed_matrix_vidcom2": lambda: speed.matrix_vidcom2(RESULTS),
    "off_cost": lambda: engine_results.off_cost(RESULTS),
    "kernel_account": lambda: kernels.account(RESULTS),
    "kv_speed": lambda: engine_results.kv_speed(RESULTS),
    "peers": lambda: peers.peers(RESULTS),
    "soak": lambda: engine_results.soak(RESULTS),
    "stts_accuracy": lambda: stts.accuracy(RESULTS),
    "stts_agreement": lambda: stts.agreement(RESULTS),
    "stts_speed": lambda: stts.speed(RESULTS),
    "stts_speed_gpu": lambda: stts.speed_gpu(RESULTS),
    "stts_gpu_account": lambda: stts.gpu_account(RESULTS),
    "stts_speed_reuse": lambda: stts.speed_reuse(RESULTS),
    "stts_memory": lambda: stts.memory(RESULTS),
    "agreement": lambda: agreement.agreement(RESULTS),
    "frame_split": lambda: stts.frame_split(RESULTS),
}
"""Every generated part by the name in its markers."""


def fill(text: str) -> str:
    """A page with its generated parts replaced.

    Raises:
        KeyError: markers of a part that no generator writes.
    """
    return re.sub(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)", _part, text, flags=re.DOTALL)


def _part(match: re.Match[str]) -> str:
    return f"{match[1]}{PARTS[match[2]]()}\n{match[3]}"


def write() -> None:
    """Write the generated parts of the documentation from the committed results."""
    for path in PAGES:
        path.write_text(fill(path.read_text()))
