"""What the benchmarks of STTS count and write, on made-up answers."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.machine import RESULTS
from benchmarks.report.stts import gpu_account
from benchmarks.stts import account
from benchmarks.stts.evaluate import rows_of
from benchmarks.stts.speed import summarise

SAMPLES = [
    SimpleNamespace(task="clips" if video else "screens", media=[SimpleNamespace(video=video)])
    for video in (False, False, True, True)
]


def test_rows_pair_answers_sample_by_sample() -> None:
    answers: Any = {
        ("unpruned", 1.0): dict.fromkeys(range(4), True),
        ("random", 0.5): {0: False, 1: True, 2: False, 3: False},
        ("stts", 0.5): {0: True, 1: True, 2: False, 3: True},
        ("evs", 0.5): {2: True, 3: True},
    }
    rows = {(row["arm"], row["kind"]): row for row in rows_of(SAMPLES, answers)}
    whole = rows["stts", "all"]
    assert (whole["right"], whole["n"]) == (3, 4)
    assert whole["over_unpruned"][0] == -0.25
    assert whole["over_random"][0] == 0.5
    assert rows["stts", "videos"]["accuracy"] == rows["stts", "clips"]["accuracy"] == 0.5
    # A strategy for videos alone is not compared over everything.
    assert ("evs", "all") not in rows
    assert rows["evs", "videos"]["over_stts"][0] == 0.5


def test_speed_ratios_are_of_one_round() -> None:
    rows = {row["arm"]: row for row in summarise({"stock": [2.0, 8.0, 4.0], "cut": [1.0, 2.0, 4.0]})}
    assert rows["cut"]["throughput_ratio"] == 2.0
    assert (rows["cut"]["lowest"], rows["cut"]["highest"]) == (1.0, 4.0)
    assert rows["stock"]["throughput_ratio"] == 1.0


def made_up(fixed: float, tower: float, language: float) -> dict[str, Any]:
    """A result of requests that take a fixed time and their operations at two speeds."""
    arms = ("stock", "keep 0.5, stts (inside the tower)", "keep 0.25, stts (inside the tower)",
            "keep 0.5, behind the tower")  # fmt: skip
    cells = [{"frames": n, "cells": 50 * n, "rows": [{"arm": arm, "seconds": 1.0} for arm in arms]} for n in (128, 256)]
    result: dict[str, Any] = {"after": 4, "results": cells}
    for one, row in zip(account.measured(result), [row for cell in cells for row in cell["rows"]], strict=True):
        row["seconds"] = fixed + one.tower / tower + one.language / language
    return result


def test_the_account_has_back_what_requests_were_made_of() -> None:
    rows = account.measured(made_up(0.1, 3e14, 7e14))
    found = account.fit(rows)
    assert (found.fixed, found.tower, found.language) == pytest.approx((0.1, 3e14, 7e14), rel=1e-6)
    assert found.error < 1e-9
    for row in account.table(rows, found):
        assert row.measured == pytest.approx(row.fitted)
        # The fixed part weighs down what a budget gains.
        assert 1 < row.measured < row.unfixed
    by_arm = {(row.cells, row.arm): row for row in account.table(rows, found)}
    inside, behind = (by_arm[6400, f"keep 0.5, {place}"] for place in ("stts (inside the tower)", "behind the tower"))
    assert inside.operations > behind.operations


def test_a_cut_leaves_the_dense_blocks_and_the_scorers_block_whole() -> None:
    whole, half, _, behind = account.measured(made_up(0.1, 3e14, 7e14))[:4]
    assert behind.tower == whole.tower
    assert behind.language == half.language
    dense, depth = 5, 32
    assert half.tower / whole.tower == pytest.approx((dense + 0.5 * (depth - dense)) / depth, rel=0.01)


def test_the_account_is_of_the_committed_result() -> None:
    committed = json.loads((RESULTS / "gpu_stts_speed.json").read_text())
    rows = account.measured(committed)
    found = account.fit(rows)
    # No speed above the device's peak of 989 TFLOP/s, and no request explained by nothing.
    assert 0 < found.fixed < min(one.seconds for one in rows)
    assert 0 < found.tower < found.language < 989e12
    assert found.error < 0.15
    text = gpu_account(RESULTS)
    seconds = {row["arm"]: row["seconds"] for row in committed["results"][1]["rows"]}
    ratio = seconds["stock"] / seconds["keep 0.25, stts (inside the tower)"]
    assert f"| keep 0.25, stts (inside the tower) | 12,800 | {ratio:.2f}x |" in text
    assert text.count("| keep") == 6
