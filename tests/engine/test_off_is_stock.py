"""Without a budget our classes answer with the same bits as stock vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .engines import EnginePool
from .off_child import OPTIONS, played

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


def of_stock(family: str, checkpoint: Path, out: Path) -> dict[str, Any]:
    """What a process without plugins answers."""
    command = [sys.executable, "-m", "tests.engine.off_child", family, str(checkpoint), str(out)]
    environ = {**os.environ, "VLLM_PLUGINS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


def test_no_budget_is_stock(family: str, engines: EnginePool, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    stock = of_stock(family, checkpoints[family], tmp_path / "stock.json")
    ours = json.loads(json.dumps(played(engines.get(family, **OPTIONS), family)))
    assert all(name.startswith("vllm.model_executor.models.") for name in stock["classes"]), stock["classes"]
    assert all(name.startswith("vllm_prune.visual.models.") for name in ours["classes"]), ours["classes"]
    assert len(stock["answers"]) == len(ours["answers"]) == 40
    for mine, theirs in zip(ours["answers"], stock["answers"], strict=True):
        assert mine == theirs
    assert sum(answer["cached"] for answer in ours["answers"]) > 0
