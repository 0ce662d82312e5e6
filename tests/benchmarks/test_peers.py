"""kvpress beside ours: the parts that need neither kvpress nor a server."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.peers import __main__ as command
from benchmarks.quality import AFTER_EVICTION, held_out
from benchmarks.report.peers import peers
from vllm_prune.budget.fields import parse_pruning


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that runs where kvpress is, with stand-ins for its classes."""

    class Press:
        def __init__(self, compression_ratio: float, **options: int) -> None:
            self.compression_ratio, self.options = compression_ratio, options

        def score(self, *args: Any) -> Any:
            return args

    stand_in = ModuleType("kvpress")
    for name in ("SnapKVPress", "KnormPress", "KeyDiffPress"):
        setattr(stand_in, name, type(name, (Press,), {}))
    monkeypatch.setitem(sys.modules, "kvpress", stand_in)
    spec = importlib.util.spec_from_file_location("kvpress_child", command.CHILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_dimension_gets_the_angle_that_rotates_it(child: Any) -> None:
    config = SimpleNamespace(text_config=SimpleNamespace(rope_parameters={"mrope_section": [1, 2, 1]}))
    press = child.press("snapkv", 0.2, SimpleNamespace(config=config))
    assert press.compression_ratio == pytest.approx(0.8)
    # Rows are time, height and width; both halves of a head are rotated alike.
    angles = torch.arange(3).view(3, 1, 1, 1) * 10.0 + torch.zeros(3, 1, 2, 8)
    handed_on = press.score(None, None, None, None, None, {"position_embeddings": (angles, -angles), "other": 1})[-1]
    assert handed_on["other"] == 1
    cosines, sines = handed_on["position_embeddings"]
    assert cosines[0, 1].tolist() == [0, 10, 10, 20, 0, 10, 10, 20]
    assert torch.equal(sines, -cosines)


def test_the_methods_have_the_same_names_on_both_sides(child: Any) -> None:
    for name in command.METHODS:
        one, field = child.press(name, 0.2, _model()), command.budget(name, 0.2)
        parse_pruning(field)
        assert (one is None) == (field["kv"] is None) == (name == "none")
        if one is not None:
            assert one.compression_ratio == pytest.approx(1 - field["kv"]["keep"])


def _model() -> Any:
    return SimpleNamespace(config=SimpleNamespace(text_config=SimpleNamespace(rope_parameters={"mrope_section": [1]})))


def test_right_answers_are_those_of_the_samples() -> None:
    samples = held_out(["screens"], 3, AFTER_EVICTION)
    right = [(str(one.expectation.expected), 0.1) for one in samples]
    wrong = [right[0], ("nothing of it", 0.2), ("nothing of it", 0.4)]
    rows = command.summary("kvpress", {"none": right, "knorm": wrong}, samples)
    assert [(row["method"], row["right"], row["n"]) for row in rows] == [("none", 3, 3), ("knorm", 1, 3)]
    assert rows[1]["ms"] == pytest.approx(200)


def test_the_page_has_both_sides_in_one_line(tmp_path: Path) -> None:
    rows = [
        {"side": side, "method": method, "n": 4, "right": right, "ms": ms}
        for side, ms in (("kvpress", 150.0), ("vllm-prune", 50.0))
        for method, right in (("none", 4), ("knorm", 1))
    ]
    written = {"rows": rows, "peer": {"kvpress": "0.5.5"}, "hardware": {"vllm": "0.32.0", "device": "2 cores"},
               "samples": 4, "keep": 0.2, "window": 8, "command": "a command"}  # fmt: skip
    (tmp_path / "peers.json").write_text(json.dumps(written))
    line = "| `knorm` | 25.0% (1 of 4) | 25.0% (1 of 4) | 150 ms | 50 ms |"
    assert line in peers(tmp_path)
