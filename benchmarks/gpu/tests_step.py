"""The tests that are marked `gpu`, a part of the step `kernels`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
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
    return [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}",
            *files()]  # fmt: skip


def run(context: Context) -> None:
    """Run them and count; without a CUDA device they are skipped by their marker."""
    report = context.work / "tests.xml"
    words = command(report)
    context.result["pytest"] = words[1:]
    with context.part("pytest"):
        code = _watched(context, words, context.work / "tests.log")
        suite = _suite(ElementTree.parse(report).getroot())
        context.result["counts"] = {name: int(suite.get(name, "0")) for name in COUNTS}
        if code:
            raise RuntimeError(f"pytest ended with {code}: {context.result['output'][-3000:]}")


def _suite(root: ElementTree.Element) -> ElementTree.Element:
    return root if root.tag == "testsuite" else root[0]


def _watched(context: Context, words: list[str], log: Path) -> int:
    """Exit code of a command. What it printed is in the result, also of one that is stopped.

    Its tests start engines in processes of their own, which would go on to hold its memory: the whole group ends.
    """
    with log.open("w") as sink:
        process = subprocess.Popen(words, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, process_group=0)
        try:
            code = context.result["exit_code"] = process.wait(max(1.0, context.clock.left))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            context.result["output"] = log.read_text(errors="replace")[-6000:]
    return code
