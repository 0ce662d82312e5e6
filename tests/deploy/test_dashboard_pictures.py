"""The pictures of the dashboards show what the dashboards ask for, from a run that had something to show."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import DEPLOY, ROOT

RECORDED: dict[str, Any] = json.loads((DEPLOY / "grafana" / "recorded_run.json").read_text())
BOARDS = {
    path.stem: json.loads(path.read_text()) for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
}
QUIET = {"Preemptions", "Skipped", "Slow first tokens"}
"""Panels of what a small run does not bring about; their series are there, and zero."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """`scripts/dashboard_pictures.py` as a module."""
    spec = importlib.util.spec_from_file_location("dashboard_pictures", ROOT / "scripts" / "dashboard_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


@pytest.mark.parametrize("name", BOARDS)
def test_what_was_recorded_are_the_dashboards_expressions(script: ModuleType, name: str) -> None:
    panels = {str(panel["id"]): panel for panel in script.panels(BOARDS[name])}
    recorded = RECORDED["dashboards"][name]
    assert list(recorded) == list(panels)
    for number, panel in panels.items():
        assert [one["expr"] for one in recorded[number]] == [target["expr"] for target in panel["targets"]]
        values = [v for query in recorded[number] for one in query["series"] for v in one["values"] if v is not None]
        assert values, f"{panel['title']} has no data: record again"
        assert any(values) == (panel["title"] not in QUIET), panel["title"]


def test_the_budgets_of_the_run_show(script: ModuleType) -> None:
    """Phase by phase fewer tokens are kept: the recording is of the load that it names."""
    board = BOARDS["pruning"]
    (number,) = (str(panel["id"]) for panel in script.panels(board) if panel["title"] == "Given and kept")
    given, kept = (query["series"][0]["values"] for query in RECORDED["dashboards"]["pruning"][number])
    run, shares, at = RECORDED["run"], [], 0
    for phase in run["phases"]:
        middle = slice((at + 20) // run["step_seconds"], (at + phase["seconds"]) // run["step_seconds"])
        shares.append(sum(kept[middle]) / sum(given[middle]))
        at += phase["seconds"]
    assert shares[0] > 0.9
    assert 0.4 < shares[1] < 0.55
    assert 0.15 < shares[2] < 0.3
    assert set(run["answers"]) == {"200", "400"}


def test_pictures_are_drawn_from_it(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "PICTURES", tmp_path)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    script.draw()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"dashboard-{name}.png" for name in sorted(BOARDS)]
    assert {path.name for path in (ROOT / "docs" / "pictures").glob("dashboard-*.png")} == {
        path.name for path in tmp_path.iterdir()
    }


def test_units_and_legends_are_grafanas(script: ModuleType) -> None:
    assert script.legend("{{part}} {{strategy}}", {"part": "kv", "strategy": "snapkv"}) == "kv snapkv"
    texts = [script.in_unit(*one) for one in [(0.25, "percentunit"), (0.012, "s"), (2.5, "s"), (1500, "short")]]
    assert texts == ["25%", "12 ms", "2.5 s", "1.5k"]
