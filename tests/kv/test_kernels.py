"""The Triton kernels equal their torch twins, run by Triton's interpreter in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).parent / "kernels_child.py"


@pytest.mark.parametrize("case", ["window_logits", "compact", "walks_in_place"])
def test_kernel_equals_its_twin(case: str) -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(CHILD), case],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checked" in done.stdout
