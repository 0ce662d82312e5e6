"""Compiled code that a later process reads from vLLM's cache still reaches what the hooks write to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vllm.config import CompilationMode

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]


def started(cache: Path) -> dict[str, Any]:
    """What a fresh process says."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.compiled_child"], cwd=ROOT, capture_output=True, text=True, timeout=280,
        env=os.environ | {"VLLM_CACHE_ROOT": str(cache), "VLLM_USE_V2_MODEL_RUNNER": "0"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def compiled(cache: Path) -> dict[Path, int]:
    """When each file of a compiled model was written."""
    return {path: path.stat().st_mtime_ns for path in cache.rglob("model") if path.is_file()}


def test_a_second_start_keeps_norms_and_coordinates(tmp_path: Path) -> None:
    first = started(tmp_path)
    assert first["mode"] == CompilationMode.VLLM_COMPILE
    assert first["norms"] > 0
    assert first["places"] > 0
    files = compiled(tmp_path)
    assert files
    assert started(tmp_path) == first
    # Else it has compiled anew, and nothing is shown.
    assert compiled(tmp_path) == files
