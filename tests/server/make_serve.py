"""`make serve` as a server, streams that it answers, and what is left of its processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.servers import EAGER, UNBOUND, Server

from .conftest import DEMO
from .guarded import until
from .media_files import user

ROOT = Path(__file__).parents[2]

RECORDER = """\
#!{python}
import pathlib, signal, subprocess, sys

server = subprocess.Popen(["{real}", *sys.argv[1:]])
signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends it to the server as well
signal.signal(signal.SIGTERM, lambda *_: server.terminate())
pathlib.Path("{status}").write_text(str(server.wait()))
"""


class MakeServe(Server):
    """`make serve`, with an environment whose `vllm-prune` also writes down the status with which the real one ends.

    Args:
        folder: an empty one, for that environment.
        log: file that takes the output.
        arguments: for `ARGS`.
        variables: on top of this process's.
    """

    def __init__(self, folder: Path, log: Path, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        super().__init__(DEMO, log=log, environment={**UNBOUND, "MAKEFLAGS": "", "MAKELEVEL": "", **variables})
        self.status = folder / "status"
        command = folder / "bin" / "vllm-prune"
        command.parent.mkdir()
        real = Path(sys.executable).parent / "vllm-prune"
        command.write_text(RECORDER.format(python=sys.executable, real=real, status=self.status))
        command.chmod(0o755)
        # `true` in place of the set-up, which would fill the folder.
        passed_on = " ".join([*EAGER, *arguments])
        self.values = [f"VENV={folder}", "PYTHON=true", f"PORT={self.port}", f"ARGS={passed_on}"]

    def _command(self) -> list[str]:
        return ["make", "-C", str(ROOT), "serve", f"MODEL={self.model}", *self.values]

    def processes(self) -> list[psutil.Process]:
        """All that run below `make`: at least the launcher, the engine and a worker."""
        assert self.process is not None
        family = psutil.Process(self.process.pid).children(recursive=True)
        assert len(family) > 3
        return family

    def send(self, number: signal.Signals) -> None:
        """Ctrl-C, which a terminal sends to all of its foreground processes, or what `kill` sends to `make` alone."""
        assert self.process is not None
        (os.killpg if number == signal.SIGINT else os.kill)(self.process.pid, number)

    def check_ended_by(self, number: signal.Signals, processes: Sequence[psutil.Process]) -> None:
        """Wait for the end: `make` ends as whoever sent the signal expects, the server with 0, and nothing is left."""
        assert self.process is not None
        assert self.process.wait(60) == -number
        assert self.status.read_text() == "0"
        # Python's tracker of shared memory ends a moment after the last process that it serves.
        until(lambda: all(ended(one) for one in processes))


def ended(process: psutil.Process) -> bool:
    """Whether nothing of a process runs any more."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def stream(server: Server, into: list[str], **more: Any) -> None:
    """Read a stream to its end; `into` gets its finish reason, and what it broke with if it did."""
    body = {"messages": user([]), "stream": True, "ignore_eos": True, **more}
    try:
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith("data: {") and (choices := json.loads(line[6:]).get("choices")):
                    into.append(str(choices[0]["finish_reason"]))
    except httpx.HTTPError as error:
        into.append(type(error).__name__)


def started(target: Callable[..., None], *args: Any, **more: Any) -> threading.Thread:
    """A thread that runs a function."""
    thread = threading.Thread(target=target, args=args, kwargs=more)
    thread.start()
    return thread
