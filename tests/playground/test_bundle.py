"""The committed bundle: small, whole, without anything that a strict policy forbids, and what the sources build."""

from __future__ import annotations

import gzip
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DIST = ROOT / "server" / "playground" / "dist"
MOST_BYTES = 80_000


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """`scripts/build_playground.py` as a module."""
    spec = importlib.util.spec_from_file_location("build_playground", ROOT / "scripts" / "build_playground.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_files_together_are_small() -> None:
    sizes = {path.name: len(gzip.compress(path.read_bytes(), 9)) for path in DIST.rglob("*") if path.is_file()}
    assert {"index.html", "playground.js", "index.css", "clip.mp4"} <= set(sizes)
    assert sum(sizes.values()) <= MOST_BYTES, sizes


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    html = (DIST / "index.html").read_text()
    scripts = re.findall(r"<script\b([^>]*)>(.*?)</script>", html, flags=re.DOTALL)
    assert [body.strip() for _, body in scripts] == [""]
    assert not re.search(r"<style|\sstyle=|\son\w+=|https?://|//\w", html)
    for name in re.findall(r'(?:src|href)="([^"]+)"', html):
        assert name.startswith("playground/")
        assert (DIST / name.removeprefix("playground/")).is_file()
    assert not re.search(r"url\(|@import|https?://", (DIST / "index.css").read_text())
    # Names of XML name spaces are addresses that nobody fetches.
    addresses = set(re.findall(r"https?://[^\"'`\s)]+", (DIST / "playground.js").read_text()))
    assert {one for one in addresses if not one.startswith("http://www.w3.org/")} == set()


def test_the_bundle_needs_no_evaluation_and_keeps_nothing() -> None:
    code = (DIST / "playground.js").read_text()
    for forbidden in ("eval(", "new Function", "localStorage", "sessionStorage", "indexedDB", "document.cookie"):
        assert forbidden not in code, forbidden


def test_licences_of_what_is_bundled_are_passed_on() -> None:
    text = (DIST / "licences.txt").read_text()
    assert all(re.search(rf"^{re.escape(name)} \d", text, flags=re.MULTILINE) for name in ("preact", "uplot"))
    assert text.count("Permission is hereby granted") == 4


def test_the_lock_file_names_no_host() -> None:
    lock = (ROOT / "playground" / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert lock.count('"integrity"') > 10


def test_the_whole_bundle_is_packaged(script: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert script.differences(tmp_path / "vllm_prune_server" / "playground" / "dist", DIST) == []


def test_a_changed_missing_or_additional_file_is_noticed(script: ModuleType, tmp_path: Path) -> None:
    built, committed = tmp_path / "built", tmp_path / "committed"
    for folder in (built, committed):
        (folder / "sub").mkdir(parents=True)
        for name in ("same", "sub/changed"):
            (folder / name).write_text(name)
    assert script.differences(built, committed) == []
    (built / "sub" / "changed").write_text("sub/chanGed")
    (built / "new").write_text("")
    (committed / "old").write_text("")
    assert script.differences(built, committed) == ["new", "old", "sub/changed"]


def test_without_node_the_check_is_left_out_and_says_so() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "build_playground.py"), "--check"]
    done = subprocess.run(command, env={"PATH": "/nonexistent"}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "not checked: no node and npm" in done.stderr
    done = subprocess.run(command[:-1], env={"PATH": "/nonexistent"}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
