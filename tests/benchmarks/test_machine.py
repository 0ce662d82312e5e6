"""What results say of where they come from."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.machine import RESULTS, command_line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ""),
        (["--n", "36", "--save"], " --n 36 --save"),
        (["--store", str(RESULTS.parents[1] / "build" / "quality")], " --store build/quality"),
        ([f"--store={RESULTS.parents[1] / 'build'}"], " --store=build"),
        (["--store", "/elsewhere/cells", "relative/path"], " --store cells relative/path"),
    ],
)
def test_a_command_says_no_place_of_this_machine(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["any", *words])
    assert command_line("benchmarks.quality") == f"python -m benchmarks.quality{said}"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_no_committed_command_names_an_absolute_path(path: Path) -> None:
    result = json.loads(path.read_text())
    commands = [result.get("command", ""), *result.get("later", {}).values()]
    assert not any(re.search(r"[\s=]/", command) for command in commands)


@pytest.mark.parametrize(("flags", "named"), [("sse amx_tile amx_bf16", "X1 with AMX"), ("sse avx512f", "X1")])
def test_processors_of_one_name_are_told_apart(flags: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: f"processor : 0\nmodel name : X1\nflags : {flags}\n")
    assert machine._processor() == named
