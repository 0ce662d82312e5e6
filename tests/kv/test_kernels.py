"""The Triton kernels equal their torch twins, run by Triton's interpreter and on a GPU, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).parent / "kernels_child.py"


@pytest.mark.slow
@pytest.mark.parametrize("interpreted", ["1", pytest.param("0", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("case", ["window_logits", "compact", "safe_in_place"])
def test_kernel_equals_its_twin(case: str, interpreted: str) -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(CHILD), case],
        capture_output=True,
        text=True,
        timeout=300,
        # The twin multiplies in full float32.
        env={**os.environ, "TRITON_INTERPRET": interpreted, "TRITON_F32_DEFAULT": "ieee"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checked" in done.stdout
