"""On a GPU: vLLM's own check finds no wait of the host in a step with budgets. On a CPU see `test_host_syncs.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .syncs_child import FAMILY

ROOT = Path(__file__).parents[2]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("v2", ["0", "1"])
def test_no_step_waits_for_the_device(v2: str, checkpoints: dict[str, Path], gates: Path) -> None:
    variables = {**os.environ, "VLLM_GPU_SYNC_CHECK": "error", "VLLM_USE_V2_MODEL_RUNNER": v2}
    command = [sys.executable, "-m", "tests.engine.syncs_child", str(checkpoints[FAMILY]), str(gates)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "no wait" in done.stdout
