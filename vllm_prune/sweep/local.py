"""A vllm-prune server of our own, for as long as a sweep takes."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from .client import SweepError

START_SECONDS = 1800
STOP_SECONDS = 60
LINES_SHOWN = 8


@contextmanager
def serving(model: str) -> Iterator[str]:
    """Serve `model` on a free loopback port; gives the URL, and ends the server afterwards.

    Raises:
        SweepError: the server does not come up; the message has the end of its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "vllm_prune.cli.main", "serve", model, "--host", "127.0.0.1", "--port", port]
    with tempfile.TemporaryDirectory(prefix="vllm-prune-sweep-") as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as sink:
            server = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        # SIGTERM would end this process at once and leave the server behind.
        before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            _wait(server, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            signal.signal(signal.SIGTERM, before)
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise SweepError(f"the server did not start; from its log:\n{_causes(log.read_text(errors='replace'))}")


def _causes(log: str) -> str:
    """The last messages of errors, the engine's among them, without their traces; then how the log ends."""
    lines = log.splitlines()
    errors = [line for line in lines if re.search(r"(Error|Exception): ", line)]
    return "\n".join([*errors[-LINES_SHOWN:], "...", *lines[-LINES_SHOWN:]])
