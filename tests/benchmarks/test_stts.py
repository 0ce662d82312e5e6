"""What the benchmarks of STTS count and write, on made-up answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

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
