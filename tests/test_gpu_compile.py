"""Every Triton kernel compiles for a GPU; Triton's interpreter, which runs them here, checks no types."""

from __future__ import annotations

from pathlib import Path

import pytest

from .triton_child import output_of

CHILD = Path(__file__).parent / "gpu_compile_child.py"


@pytest.mark.slow
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton.backends.nvidia")
    # A cache of its own, or an older compilation would answer.
    said = output_of(CHILD, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert said.splitlines()[-2:] == ["refused: True", "compiled"]
