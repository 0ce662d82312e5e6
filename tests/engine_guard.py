"""Which tests `make quick` runs, and a guard that fails one of these when it starts an engine or a server.

A test is quick unless it has one of the markers in `NOT_QUICK`. The guard is on in every run, so a test without its
marker fails in `make test` as well.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .runner_v2 import AfterImport

NOT_QUICK = ("engine", "slow", "gpu")
STARTS = {
    "benchmarks.servers": ("Server", "__enter__"),
    "vllm.v1.engine.core": ("EngineCore", "__init__"),
    "vllm.v1.engine.core_client": ("MPClient", "__init__"),
}
"""The calls that start a server, an engine in the test's process, and an engine in another one."""
COMMANDS = ("vllm", "vllm-prune")
ENGINE_TESTS = str(Path(__file__).parent / "engine")

_running: str | None = None


def is_quick(item: pytest.Item) -> bool:
    """Whether `make quick` runs a test."""
    return not any(item.get_closest_marker(name) for name in NOT_QUICK)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Guard the test with its fixtures, if it is a quick one."""
    global _running
    _running = item.nodeid if is_quick(item) else None
    try:
        return (yield)
    finally:
        _running = None


def refuse(what: str) -> None:
    """Fail the test that runs, if it is a quick one. Not an `Exception`, so that the code under test lets it pass."""
    if _running is not None:
        pytest.fail(f"{_running} starts {what}: mark it with pytest.mark.engine, or do without", pytrace=True)


def starts_engine(command: str | Sequence[object]) -> bool:
    """Whether a command runs a server, or one of the engine tests' own programs."""
    words = command.split() if isinstance(command, str) else [str(word) for word in command]
    serves = "serve" in words and any(
        Path(word).name in COMMANDS or word.startswith("vllm_prune.cli") for word in words
    )
    return serves or any(word.startswith(("vllm.entrypoints", ENGINE_TESTS)) for word in words)


def install() -> None:
    """Watch the modules in `STARTS`, now or when they are imported, and child processes. Once per process."""
    if not AfterImport.install("the engine guard", lambda name: _watch if name in STARTS else None):
        return
    for name in STARTS:
        if name in sys.modules:
            _watch(sys.modules[name])
    popen: Any = subprocess.Popen
    popen.__init__ = _guarded(popen.__init__, lambda _, args, *rest, **more: starts_engine(args), "a server's process")


def _watch(module: ModuleType) -> None:
    class_name, method = STARTS[module.__name__]
    watched = getattr(module, class_name)
    what = f"{module.__name__}.{class_name}"
    setattr(watched, method, _guarded(getattr(watched, method), lambda *_, **__: True, what))


def _guarded(function: Callable[..., Any], starts: Callable[..., bool], what: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if starts(*args, **kwargs):
            refuse(what)
        return function(*args, **kwargs)

    return guarded
