"""Rows, files and the plot, from cells whose figures are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vllm_prune.sweep import UNPRUNED, Arm, Cell, Sample, kv_arms, visual_arms
from vllm_prune.sweep.arms import combined
from vllm_prune.sweep.client import Answer
from vllm_prune.sweep.graders import Expectation
from vllm_prune.sweep.report import rows, write

SAMPLES = [Sample(f"s{i}", {"messages": []}, Expectation("x"), "even" if i % 2 == 0 else "odd") for i in range(8)]


def cell(arm: Arm, right: str, kept: int = 100, evicted: int = 0) -> Cell:
    """One answer per letter of `right`: y or n; 100 visual tokens and 120 rows each."""
    answers = [
        Answer(f"s{i}", "x", letter == "y", 20 + kept, 100, kept, 120, evicted) for i, letter in enumerate(right)
    ]
    return Cell(arm, tuple(answers))


def cells() -> list[Cell]:
    by_name = {arm.name: arm for arm in [*visual_arms(["divprune"], [0.5]), *kv_arms(["snapkv"], [0.2])]}
    return [
        cell(UNPRUNED, "yyyyyyyy"),
        cell(by_name["visual divprune 0.5"], "yyyyyyyn", kept=50),
        cell(by_name["visual random 0.5"], "ynynynyn", kept=50),
        Cell(by_name["visual uniform 0.5"], (), "sample s0: 400 no"),
        cell(by_name["visual resize 0.5"], "yyyynnnn", kept=48),
        cell(by_name["kv snapkv 0.2"], "yyyyyyyy", evicted=96),
    ]


def test_rows_have_shares_differences_and_costs() -> None:
    found = {(row["strategy"], row["group"]): row for row in rows(cells(), SAMPLES)}
    chosen = found["divprune", "all"]
    assert (chosen["n"], chosen["right"], chosen["accuracy"]) == (8, 7, 7 / 8)
    assert (chosen["difference"], chosen["over_random"]) == (-1 / 8, 3 / 8)
    assert (chosen["over_resize"], found["random", "all"]["over_resize"]) == (3 / 8, 0)
    assert "over_uniform" not in chosen
    assert chosen["over_random_low"] <= 3 / 8 <= chosen["over_random_high"]
    assert (chosen["kept_share"], chosen["prompt_tokens"], chosen["visual_kept_tokens"]) == (0.5, 70, 50)
    assert found["divprune", "even"]["accuracy"] == 1
    assert found["divprune", "odd"]["accuracy"] == 3 / 4
    assert found["random", "odd"]["accuracy"] == 0
    assert found["snapkv", "all"]["kept_share"] == pytest.approx(0.2)
    assert found["snapkv", "all"]["kv_evicted_rows"] == 96
    assert "over_random" not in found["snapkv", "all"]
    assert found["uniform", "all"] == {
        "part": "visual", "strategy": "uniform", "keep": 0.5, "group": "all", "n": 0, "refused": "sample s0: 400 no",
    }  # fmt: skip


def test_a_combined_arm_counts_both_savings() -> None:
    (arm,) = combined(visual_arms([], [0.5])[:1], kv_arms([], [0.25])[:1])
    assert arm.pruning == {"visual": {"strategy": "random", "keep": 0.5}, "kv": {"strategy": "random", "keep": 0.25}}
    answers = tuple(Answer(f"s{i}", "x", True, 70, 100, 50, 70, 52) for i in range(8))
    row = rows([cell(UNPRUNED, "y" * 8), Cell(arm, answers)], SAMPLES)[3]
    assert row["kept_share"] == pytest.approx(18 / 120)


def test_files_are_written(tmp_path: Path) -> None:
    found = rows(cells(), SAMPLES)
    paths = write(tmp_path / "out", found, {"model": "m"})
    assert [path.name for path in paths] == ["sweep.csv", "sweep.json", "sweep.png"]
    with paths[0].open(newline="") as file:
        table: list[dict[str, Any]] = list(csv.DictReader(file))
    assert len(table) == len(found) == 18
    assert {row["strategy"]: row["accuracy"] for row in table if row["group"] == "all"} == {
        "unpruned": "1.0", "divprune": "0.875", "random": "0.5", "uniform": "", "resize": "0.5",
        "snapkv": "1.0",
    }  # fmt: skip
    assert json.loads(paths[1].read_text()) == {"model": "m", "rows": found}
    with Image.open(paths[2]) as picture:
        assert picture.width > 1000  # two panels
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10


def test_every_strategy_comes_with_its_baselines() -> None:
    assert {arm.strategy for arm in visual_arms(["evs"], [0.5])} == {"evs", "random", "uniform", "resize"}
    assert {arm.strategy for arm in kv_arms(["snapkv"], [0.5])} == {"snapkv", "random"}
    names = [arm.name for arm in visual_arms(["random"], [0.25, 0.5, 0.25])]
    assert names == ["visual random 0.5", "visual random 0.25", "visual uniform 0.5", "visual uniform 0.25",
                     "visual resize 0.5", "visual resize 0.25"]  # fmt: skip
