"""Triton reads its switches when it is imported, so kernels run in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def output_of(child: Path, *words: str, **environment: str) -> str:
    """What a script prints, which has to succeed; skips the test where Triton is not installed.

    Args:
        child: the script.
        words: its arguments.
        environment: variables on top of this process's.
    """
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(child), *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
