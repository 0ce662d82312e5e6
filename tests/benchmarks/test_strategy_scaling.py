"""The fit of costs over sizes, on times whose growth is known."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks import strategy_scaling
from benchmarks.report.strategies import scaling
from benchmarks.strategy_scaling import SIZES, exponent, processor_milliseconds, row


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_is_that_of_the_times(power: float) -> None:
    times = {size: 3e-3 * size**power for size in SIZES}
    assert exponent(SIZES, list(times.values())) == pytest.approx(power)
    assert row("divprune", "image", 0.25, times)["growth"] == pytest.approx(16 ** (power - 1))


def test_waiting_is_no_processor_time() -> None:
    assert processor_milliseconds(lambda: time.sleep(0.02), 3) < 10


def test_a_measured_run_gives_a_row_and_a_line_of_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(strategy_scaling, "SIZES", (256, 1024))
    rows = strategy_scaling.measured(["uniform", "evs"], 8, 1)
    assert [(one["strategy"], one["modality"]) for one in rows] == [
        *[("uniform", "image")] * 3, *[("uniform", "video")] * 3, *[("evs", "video")] * 3,
    ]  # fmt: skip
    assert all(ms > 0 for one in rows for ms in one["ms"].values())
    written = {"sizes": [256, 1024], "reference": 1024, "rows": rows, "width": 8, "command": "a command",
               "hardware": {"device": "2 cores"}}  # fmt: skip
    (tmp_path / "strategy_scaling.json").write_text(json.dumps(written))
    page = scaling(tmp_path)
    assert page.count("| `uniform` |") == 6
    assert f"| {rows[0]['exponent']:.2f} | 1.00 |" in page
    assert "18 of 18" in capfd.readouterr().err
