"""Every Triton kernel compiles for a GPU; Triton's interpreter, which runs them here, checks no types."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).parent / "gpu_compile_child.py"


@pytest.mark.slow
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton.backends.nvidia")
    done = subprocess.run(
        [sys.executable, str(CHILD)],
        capture_output=True,
        text=True,
        timeout=300,
        # A cache of its own, or an older compilation would answer.
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-2:] == ["refused: True", "compiled"]
