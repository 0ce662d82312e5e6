"""Tools that check the files of deploy/."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "vllm-prune"

Run = Callable[..., subprocess.CompletedProcess[str]]


def find(name: str) -> str:
    """Path of a tool, from the PATH or from where scripts/deploy_tools.py puts it."""
    local = ROOT / "build" / "tools" / name
    found = shutil.which(name) or (str(local) if local.is_file() else None)
    if found is None:
        pytest.fail(f"{name} is missing: run scripts/deploy_tools.py, which says why it cannot be had, or install it")
    return found


def _runner(name: str) -> Run:
    path = find(name)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [path, *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture(scope="session")
def promtool() -> Run:
    """Runs Prometheus's own checker."""
    return _runner("promtool")


@pytest.fixture(scope="session")
def helm() -> Run:
    """Runs helm."""
    return _runner("helm")
