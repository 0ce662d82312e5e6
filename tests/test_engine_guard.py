"""The guard of quick tests: these have no marker, so what they start must be refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.servers import Server

from .engine_guard import ENGINE_TESTS, NOT_QUICK, starts_engine

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


def test_an_engine_in_this_process_and_in_another() -> None:
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.core_client import MPClient

    for start in (EngineCore, MPClient):
        with REFUSED:
            start(None, None, None)  # type: ignore[arg-type, call-arg]


def test_a_child_process() -> None:
    with REFUSED:
        subprocess.run(["vllm-prune", "serve", "/nowhere"], check=False)
    assert (
        subprocess.run([sys.executable, "-c", "print('serve')"], capture_output=True, check=True).stdout == b"serve\n"
    )


@pytest.mark.parametrize(
    ("command", "starts"),
    [
        (["/venv/bin/vllm-prune", "serve", "model"], True),
        ("vllm serve model", True),
        ([sys.executable, "-m", "vllm_prune.cli", "serve", "model"], True),
        ([sys.executable, "-m", "vllm.entrypoints.openai.api_server"], True),
        ([sys.executable, f"{ENGINE_TESTS}/off_child.py"], True),
        (["vllm-prune", "doctor"], False),
        (["make", "-n", "serve"], False),
    ],
)
def test_commands_that_start_an_engine(command: str | list[str], starts: bool) -> None:
    assert starts_engine(command) is starts


@pytest.mark.engine
def test_a_marked_test_may(request: pytest.FixtureRequest) -> None:
    from vllm.v1.engine.core import EngineCore

    with pytest.raises(AttributeError):  # of the engine's own, as this is no configuration
        EngineCore(SimpleNamespace(), None, False)  # type: ignore[arg-type]


def test_make_quick_selects_by_these_markers() -> None:
    (expression,) = re.findall(r"^quick:.*\n(?:\t.*\n)*?.*-m '([^']+)'", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert expression == " and ".join(f"not {name}" for name in NOT_QUICK)
