"""The picture and the words about the KV benchmark, from the committed result."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from benchmarks.kv import R_KV, plot, pool_share
from benchmarks.machine import RESULTS
from benchmarks.report.engine_results import kv_speed

RESULT = json.loads((RESULTS / "kv.json").read_text())


def test_the_tight_pool_holds_two_of_its_requests() -> None:
    assert pool_share({"blocks": 9, "requests": 10}) == 0.2
    assert pool_share({"blocks": None, "requests": 10}) == 1.0


def test_the_page_says_where_both_cross(tmp_path: Path) -> None:
    moved = json.loads(json.dumps(RESULT))
    moved["ample"]["throughput_ratio"] = 0.5
    (tmp_path / "kv.json").write_text(json.dumps(moved))
    text = kv_speed(tmp_path)
    assert "0.50x at 100%" in text
    assert all(f"{ratio:.2f}x at {share:.0%}" in text for share, ratio in R_KV.items())


def test_the_picture_has_three_panels(tmp_path: Path) -> None:
    plot(RESULT, tmp_path / "kv.png")
    width, height = Image.open(tmp_path / "kv.png").size
    assert width > 3 * height
