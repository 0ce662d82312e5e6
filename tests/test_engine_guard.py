"""The guard of quick tests: these have no marker, so what they start must be refused."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.servers import Server

from . import engine_guard
from .engine_guard import ENGINE_TESTS, NOT_QUICK, STARTS, starts_engine

ROOT = Path(__file__).resolve().parent.parent
REFUSED = pytest.raises(pytest.fail.Exception, match=r"mark it with pytest\.mark\.engine")


class ByMake(Server):
    """A server whose command the guard does not know."""

    def _command(self) -> list[str]:
        return ["make", "serve"]


@pytest.mark.parametrize("kind", [Server, ByMake])
def test_a_server(kind: type[Server]) -> None:
    with REFUSED, kind(Path("/nowhere")):
        pass


def test_a_class_of_a_module_that_is_imported_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "later_engine.py").write_text("class Engine:\n    def __init__(self, size):\n        self.size = size")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(STARTS, "later_engine", ("Engine", "__init__"))
    engine = importlib.import_module("later_engine").Engine
    with REFUSED:
        engine(3)
    monkeypatch.setattr(engine_guard, "_running", None)
    assert engine(3).size == 3


def test_a_child_process() -> None:
    with REFUSED:
        subprocess.run(["vllm-prune", "serve", "/nowhere"], check=False)
    other = subprocess.run([sys.executable, "-c", "print('serve')"], capture_output=True, check=True)
    assert other.stdout == b"serve\n"


@pytest.mark.parametrize(
    ("command", "starts"),
    [
        (["/venv/bin/vllm-prune", "serve", "model"], True),
        ("vllm serve model", True),
        ([sys.executable, "-m", "vllm_prune.cli.main", "serve", "model"], True),
        ([sys.executable, "-m", "vllm.entrypoints.openai.api_server"], True),
        ([sys.executable, f"{ENGINE_TESTS}/off_child.py"], True),
        (["vllm-prune", "doctor"], False),
        (["make", "-n", "serve"], False),
    ],
)
def test_commands_that_start_an_engine(command: str | list[str], starts: bool) -> None:
    assert starts_engine(command) is starts


@pytest.mark.slow
def test_vllms_engines_are_what_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of a test's own process, and the client that starts one in another: all kinds derive from these."""
    from vllm.v1.engine import core, core_client

    assert issubclass(core.EngineCoreProc, core.EngineCore)
    assert issubclass(core_client.AsyncMPClient, core_client.MPClient)
    assert issubclass(core_client.SyncMPClient, core_client.MPClient)
    monkeypatch.setattr(engine_guard, "_running", "a quick test")
    for start in (core.EngineCore, core_client.MPClient):
        with REFUSED:
            start(None, None, None)  # type: ignore[arg-type, call-arg]
    monkeypatch.setattr(engine_guard, "_running", None)
    with pytest.raises(AttributeError):  # the engine's own, as None is no configuration
        core.EngineCore(None, None, False)  # type: ignore[arg-type]


def test_make_quick_selects_by_these_markers() -> None:
    (expression,) = re.findall(r"^quick:.*\n(?:\t.*\n)*?.*-m '([^']+)'", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert expression == " and ".join(f"not {name}" for name in NOT_QUICK)
