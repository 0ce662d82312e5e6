"""The analytic bound, against counts done by hand and against what must hold for any shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.shapes import EIGHT_B, SEVEN_B, TINY_2_5, TINY_3, Shape, build
from benchmarks.speed.arms import kv, off, peer, stock, visual
from benchmarks.speed.bound import (
    Request,
    add_to,
    block_operations,
    language_weights,
    prefill_operations,
    ratio,
    request_of,
    seconds,
    tower_operations,
)
from benchmarks.speed.micro import Speeds, measure
from benchmarks.speed.workloads import GPU, workloads

SPEEDS = Speeds(1e12, 1e11, "device", "bfloat16")


def test_weights_are_those_of_the_published_models() -> None:
    # 7.62 billion less two vocabularies of 152,064 x 3,584, and 8.19 billion less two of 151,936 x 4,096.
    assert language_weights(SEVEN_B) == pytest.approx(7.62e9 - 2 * 152_064 * 3584, rel=0.005)
    assert language_weights(EIGHT_B) == pytest.approx(8.19e9 - 2 * 151_936 * 4096, rel=0.005)


def test_a_block_by_hand() -> None:
    # Width 64, inner 128: 4 x 64 x 64 + 3 x 64 x 128 weights; the last block of three attends to everything.
    weights = 4 * 64 * 64 + 3 * 64 * 128
    assert block_operations(TINY_2_5, 2, 100) == 2 * 100 * weights + 4 * 100 * 100 * 64
    assert block_operations(TINY_2_5, 0, 100) == 2 * 100 * weights + 4 * 100 * 64 * 64


def test_prefill_by_hand() -> None:
    # Two layers, width 128, four heads of 32, two for keys and values, inner 256.
    weights = 2 * (128 * 32 * (4 + 4 + 2 + 2) + 3 * 128 * 256)
    assert language_weights(TINY_2_5) == weights
    assert prefill_operations(TINY_2_5, 10) == 2 * 10 * weights + 2 * 10 * 10 * 4 * 32 * 2


def test_decoding_shares_the_weights_and_not_the_rows() -> None:
    request = Request((), 100, 11)
    alone, eight = (seconds(TINY_2_5, request, SPEEDS, batch).decode for batch in (1, 8))
    weights, rows = 2 * language_weights(TINY_2_5), (100 + 11 / 2) * 2 * 2 * 32 * 2 * 2
    assert alone == pytest.approx(10 * (weights + rows) / SPEEDS.bytes)
    assert eight == pytest.approx(10 * (weights / 8 + rows) / SPEEDS.bytes)


@given(keep=st.floats(0.01, 0.99), after=st.integers(0, 32), patches=st.integers(4, 40_000))
def test_a_cut_lies_between_nothing_and_everything(keep: float, after: int, patches: int) -> None:
    whole = Request((patches,), 32, 8)
    behind, cut = replace(whole, keep=keep), replace(whole, keep=keep, cut_after=after)
    assert tower_operations(SEVEN_B, behind) == tower_operations(SEVEN_B, whole)
    assert tower_operations(SEVEN_B, cut) <= tower_operations(SEVEN_B, whole)
    assert tower_operations(SEVEN_B, replace(cut, cut_after=32)) == tower_operations(SEVEN_B, whole)


def test_smaller_budgets_and_earlier_cuts_may_be_faster() -> None:
    for shape in (SEVEN_B, EIGHT_B):
        for name in ("video", "screenshot"):
            bounds = [
                ratio(shape, workloads(GPU)[name], arm, stock(), SPEEDS, 8)
                for arm in (stock(), off(), visual(0.5, "behind"), visual(0.5, "tower"), visual(0.25, "tower"))
            ]
            assert bounds[:2] == [1.0, 1.0]
            assert sorted(bounds) == bounds
            assert 1 < bounds[-1] < 16  # attention in the tower is quadratic
            same = [ratio(shape, workloads(GPU)[name], arm, stock(), SPEEDS, 8) for arm in
                    (peer("evs", 0.25), visual(0.25, "behind"))]  # fmt: skip
            assert same[0] == same[1]


def test_kv_budgets_only_shorten_decoding() -> None:
    workload = workloads(GPU)["five screenshots"]
    whole, evicted = (seconds(SEVEN_B, request_of(SEVEN_B, workload, arm), SPEEDS, 8) for arm in (stock(), kv(0.2)))
    assert (whole.tower, whole.prefill) == (evicted.tower, evicted.prefill)
    assert evicted.decode < whole.decode


def test_sizes_are_read_from_a_folder(tmp_path: Path) -> None:
    for shape in (SEVEN_B, EIGHT_B, TINY_2_5, TINY_3):
        assert Shape.of(build(shape, tmp_path / f"{shape.family}-{shape.layers}")) == shape


def test_a_summary_gets_the_bound_beside_it() -> None:
    workload, arms = workloads(GPU)["video"], [stock(), visual(0.25, "tower")]
    rows: list[dict[str, Any]] = [
        {"arm": arm.name, "requests_per_second": 2.0, "throughput_ratio": 1.5} for arm in arms
    ]
    add_to({"concurrency": 8, "rows": rows}, SEVEN_B, workload, arms, SPEEDS)
    assert rows[0]["ratio_bound"] == 1.0
    assert rows[1]["share_of_ratio_bound"] == pytest.approx(1.5 / rows[1]["ratio_bound"])
    least = rows[1]["least_seconds"]
    assert rows[1]["share_of_device_bound"] == pytest.approx(2 * sum(least.values()))


@pytest.mark.slow
def test_the_micro_benchmarks_measure_something() -> None:
    speeds = measure("tiny", repeats=3)
    assert speeds.flops > 1e6
    assert speeds.bytes > 1e6
