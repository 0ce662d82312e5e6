"""The scripts around the page say what they could not do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(path: Path) -> subprocess.CompletedProcess[str]:
    """`get_chromium.py` with only this folder on the PATH."""
    command = [sys.executable, str(SCRIPTS / "get_chromium.py")]
    return subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True, timeout=60)


def program(path: Path, code: str) -> None:
    """A shell script."""
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(0o755)


def test_without_apt_it_is_said_how_to_get_chromium(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0
    assert "apt-get install --no-install-recommends chromium" in done.stderr


def test_nothing_is_installed_where_chromium_is(tmp_path: Path) -> None:
    program(tmp_path / "chromium", "exit 0")
    program(tmp_path / "apt-get", f"echo called >> {tmp_path}/calls; exit 1")
    assert run(tmp_path).stderr == ""
    assert not (tmp_path / "calls").exists()
