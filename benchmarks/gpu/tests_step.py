"""The tests that are marked `gpu`, a part of the step `kernels`."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from .plugin_site import ROOT
from .runner import Context

COUNTS = ("tests", "failures", "errors", "skipped")
MARK = re.compile(r"\bmarks?\w*[.=]\S*\bgpu\b|pytest\.mark\.gpu\b")


def files() -> list[str]:
    """Files that use the marker; others are not collected, as they may import what this machine lacks."""
    names = (path for path in sorted((ROOT / "tests").rglob("test_*.py")) if MARK.search(path.read_text()))
    return [str(path.relative_to(ROOT)) for path in names]


def command(report: Path) -> list[str]:
    """A run in this interpreter, without a cache of its own and without plugins that the machine may lack."""
    return [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}",
            *files()]  # fmt: skip


def run(context: Context) -> None:
    """Run them and count; without a CUDA device they are skipped by their marker."""
    report = context.work / "tests.xml"
    words = command(report)
    context.result["pytest"] = words[1:]
    with context.part("pytest"):
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, context.clock.left), check=False
        )
        context.result |= {"exit_code": done.returncode, "output": (done.stdout + done.stderr)[-6000:]}
        counts = ElementTree.parse(report).getroot()
        suite = counts if counts.tag == "testsuite" else counts[0]
        context.result["counts"] = {name: int(suite.get(name, "0")) for name in COUNTS}
        if done.returncode:
            raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-3000:]}")
