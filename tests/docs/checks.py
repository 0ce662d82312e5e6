"""Checks of commands that are not run: against the command line's own parsers, the Makefile and the files they name."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
from functools import lru_cache
from itertools import takewhile
from typing import Any

import typer

from benchmarks.gpu import __main__ as gpu
from vllm_prune.cli.main import app

from .pages import ROOT


def commands(text: str) -> list[list[str]]:
    """Words of each command of a shell block, comments and continuation lines aside."""
    joined = text.replace("\\\n", " ")
    split = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [words for words in split if words]


def check(words: list[str]) -> None:
    """Check one command.

    Raises:
        AssertionError: it would fail, or there is no check for it.
    """
    variables = list(takewhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    name, *arguments = words[len(variables) :]
    assert name in CHECKS, f"no check for {name}: add one, or a comment <!-- not run: REASON -->"
    assert not variables or (ROOT / name).is_file(), f"variables of {name} have no check"
    for variable in variables:
        assert f"${{{variable.partition('=')[0]}" in (ROOT / name).read_text(), f"{name} reads no {variable}"
    CHECKS[name](arguments)


def _make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for variable in (word.partition("=")[0] for word in words if "=" in word):
        assert re.search(rf"^{variable}\s*\?=", makefile, re.MULTILINE), f"the Makefile has no variable {variable}"
    dry = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert dry.returncode == 0, dry.stderr


def _vllm_prune(words: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    command = group.commands[words[0]]
    with command.make_context(words[0], words[1:]) as context:
        if words[0] == "serve":
            _vllm(["serve", context.params["model"], *context.args])


def _vllm(words: list[str]) -> None:
    assert words[0] == "serve", f"vllm {words[0]} has no check"
    parsed = _vllm_parser().parse_args(words)
    assert parsed.model_tag


@lru_cache
def _vllm_parser() -> Any:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    return parser


def _python(words: list[str]) -> None:
    assert words[0] == "-m", f"python {words[0]} has no check"
    if words[1] == "pytest":
        assert all((ROOT / word).exists() for word in words[2:] if not word.startswith("-")), words
        return
    assert importlib.util.find_spec(words[1]) is not None, f"there is no module {words[1]}"
    assert len(words) == 2, f"arguments of {words[1]} have no check"


def _gpu(words: list[str]) -> None:
    group = typer.Typer()
    group.command()(gpu.main)
    with typer.main.get_command(group).make_context("gpu", ["--out", "build/gpu", *words]):
        assert os.access(ROOT / "benchmarks/gpu.sh", os.X_OK)


CHECKS = {
    "benchmarks/gpu.sh": _gpu,
    "make": _make,
    "vllm-prune": _vllm_prune,
    "vllm": _vllm,
    "python": _python,
    ".venv/bin/python": _python,
}
