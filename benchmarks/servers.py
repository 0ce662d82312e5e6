"""Real servers in processes of their own, for benchmarks and tests: ours, or stock vLLM without our plugin."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import httpx
from prometheus_client.parser import text_string_to_metric_families

from vllm_prune.cli.host import MALLOC_SWITCH, installed_libraries, preload_list

STOCK_PLUGINS = "none"
EAGER = ("--enforce-eager",)
"""For servers that are started for something the compiler has no part in: they are there in half the time."""
UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
"""For servers on a CPU beside others: vLLM would bind the workers of all to one core."""
START_SECONDS = 300

_SCRIPT = Path(sys.executable).parent / "vllm-prune"
LAUNCHER = (str(_SCRIPT),) if _SCRIPT.exists() else (sys.executable, "-m", "vllm_prune.cli.main")
"""Our command, also where the packages only lie on the path and no script is installed."""

# What in-process engines of a test session leave in the environment; a server is to start as a user's would.
ENGINE_LEAVES = (
    "LOCAL_WORLD_SIZE",
    "PROMETHEUS_MULTIPROC_DIR",
    "VLLM_CPU_CI_ENV",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_PLUGINS",
    "VLLM_PRUNE_PRELOADED",
    "VLLM_PRUNE_LAUNCHED",
)
# vLLM adds PyTorch's libgomp to this variable of the process that it runs in.
PRELOAD_AT_START = os.environ.get("LD_PRELOAD", "")


def alike() -> dict[str, str]:
    """Environment in which stock and ours have the same libraries and allocator.

    Ours preloads libraries by itself and sets thresholds of the C library's allocator; comparisons are about neither.
    """
    libraries = preload_list(PRELOAD_AT_START, installed_libraries())
    return {"LD_PRELOAD": ":".join(libraries), MALLOC_SWITCH: "0"}


class Server:
    """A server process; use as a context manager.

    Args:
        model: checkpoint folder.
        kind: "prune" for `vllm-prune serve`, "plain" for `vllm serve` with our plugin loaded by its entry
            point, "stock" for `vllm serve` with all plugins off.
        arguments: passed on to `vllm serve`.
        config: operator's configuration for ours.
        log: file that takes the server's output.
        environment: variables on top of this process's.
        start_seconds: how long it may take to start.
        stop_seconds: how long it may take to end before it is killed.
    """

    def __init__(
        self,
        model: Path,
        kind: str = "prune",
        arguments: Sequence[str] = (),
        config: Path | None = None,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
        start_seconds: float = START_SECONDS,
        stop_seconds: float = 60,
    ) -> None:
        self.start_seconds, self.stop_seconds = start_seconds, stop_seconds
        self.model, self.kind, self.config, self.log = model, kind, config, log
        self.arguments = list(arguments)
        self.environment = dict(environment or {})
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        sink = self.log.open("wb") if self.log else subprocess.DEVNULL
        self.process = subprocess.Popen(
            self._command(), env=self._environment(), stdout=sink, stderr=subprocess.STDOUT,
            # A group to kill, but no session: Linux shares the cores out by session, and beside the spinning
            # engine of another one this process gets no turn for seconds.
            process_group=0,
        )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            # Also a limit of the test's time, or Ctrl-C: nobody else would end it.
            self.stop()
            raise
        return self

    def _command(self) -> list[str]:
        place = ["--host", "127.0.0.1", "--port", str(self.port), *self.arguments]
        if self.kind != "prune":
            # `vllm serve` itself does not start from the CPU distribution; this module is the same server.
            return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model), *place]
        own = ["--config", str(self.config)] if self.config else []
        return [*LAUNCHER, "serve", str(self.model), *own, *place]

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        environment["LD_PRELOAD"] = PRELOAD_AT_START
        for name in ENGINE_LEAVES:
            environment.pop(name, None)
        if self.kind == "stock":
            environment["VLLM_PLUGINS"] = STOCK_PLUGINS
        return {**environment, **self.environment}

    def _wait(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + self.start_seconds
        # One client for all tries: making one reads the system's certificates, which takes longer than the pause.
        with httpx.Client(timeout=2) as client:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    raise RuntimeError(f"{self.kind} server exited with {self.process.returncode}{self._tail()}")
                with suppress(httpx.HTTPError):
                    if client.get(f"{self.url}/health").status_code == 200:
                        return
                time.sleep(0.2)
        raise TimeoutError(f"{self.kind} server did not answer in {self.start_seconds:g} s{self._tail()}")

    def _tail(self) -> str:
        if self.log is None or not self.log.exists():
            return ""
        return "\n" + _explain(self.log.read_text(errors="replace"))

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Signal the server and wait for it; returns its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def model_name(self) -> str:
        """Name under which the model is served."""
        return str(httpx.get(f"{self.url}/v1/models", timeout=30).json()["data"][0]["id"])

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric over all label values but the given ones; 0 for one that does not exist."""
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())


def _explain(log: str, last: int = 12, most: int = 3000) -> str:
    """What to read first in a failed server's log: its own error lines, the engine's among them, then its end."""
    lines = log.splitlines()
    errors = [line for line in lines if ("ERROR" in line or "Error:" in line) and "  File " not in line]
    # The configuration is one line of many thousands of characters.
    return "\n".join(line[:400] for line in [*errors, "... the log ends with", *lines[-last:]])[-most:]


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
