"""Servers that run side by side; one that does not start leaves the others alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from ..servers import START_SECONDS, Server

LEAST_SECONDS = 10.0
"""Without so many seconds left a server is not tried a second time."""


@dataclass(frozen=True)
class Plan:
    """One server.

    Attributes:
        name: in the fleet.
        kind: see `Server`.
        arguments: of `vllm serve`.
        environment: variables on top of this process's.
        fallback: arguments to add and try once more with, where it does not start; none for no second try.
    """

    name: str
    kind: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    fallback: tuple[str, ...] = ()


def end(server: Server) -> None:
    """Stop a server, and kill what it may have left of its process group."""
    if server.process is None:
        return
    server.stop()
    with suppress(ProcessLookupError):
        os.killpg(server.process.pid, signal.SIGKILL)


class Fleet:
    """Servers of one checkpoint by name; use as a context manager.

    Args:
        folder: the checkpoint.
        logs: folder for one log per server.
        start_seconds: how long a server may take to start, its second try included.
        stop_seconds: how long one may take to end before it is killed.
    """

    def __init__(
        self, folder: Path, logs: Path, start_seconds: float = START_SECONDS, stop_seconds: float = 60
    ) -> None:
        self.folder, self.logs, self.start_seconds, self.stop_seconds = folder, logs, start_seconds, stop_seconds
        self.servers: dict[str, Server] = {}
        self.models: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.notes: dict[str, str] = {}

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(*self.servers)

    def start(self, plans: Sequence[Plan], at_once: int = 4) -> dict[str, str]:
        """Start servers side by side.

        Args:
            plans: what to start.
            at_once: most servers that start at the same time.

        Returns:
            Why each one that did not start did not.
        """
        with ThreadPoolExecutor(at_once) as pool:
            try:
                list(pool.map(self._start_or_note, plans))
            except BaseException:
                # The pool waits for its threads, and these for servers that would go on starting.
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop(*self.servers)
                raise
        return {plan.name: self.errors[plan.name] for plan in plans if plan.name in self.errors}

    def _start_or_note(self, plan: Plan) -> None:
        tries = [plan.arguments] + ([(*plan.arguments, *plan.fallback)] if plan.fallback else [])
        until = time.monotonic() + self.start_seconds
        for number, arguments in enumerate(tries):
            left = until - time.monotonic()
            # A server that was too slow has used the time up; one that broke off has left some.
            if number and left < LEAST_SECONDS:
                return
            log = self.logs / f"{plan.name}{number or ''}.log"
            server = Server(
                self.folder, plan.kind, arguments, log=log, environment=plan.environment,
                start_seconds=left, stop_seconds=self.stop_seconds,
            )  # fmt: skip
            # Entered in the table before it starts, so that a step that is cut short leaves no process behind.
            self.servers[plan.name] = server
            try:
                server.__enter__()
                self.models[plan.name] = server.model_name
            except Exception as error:
                end(server)
                self.servers.pop(plan.name, None)
                self.errors[plan.name] = str(error)
            else:
                if number:
                    self.notes[plan.name] = f"started with {' '.join(plan.fallback)} after: {self.errors[plan.name]}"
                self.errors.pop(plan.name, None)
                return

    def stop(self, *names: str) -> None:
        """End servers side by side."""
        chosen = [self.servers.pop(name) for name in names if name in self.servers]
        if chosen:
            with ThreadPoolExecutor(len(chosen)) as pool:
                list(pool.map(end, chosen))

    def __getitem__(self, name: str) -> Server:
        return self.servers[name]

    def __contains__(self, name: str) -> bool:
        return name in self.servers

    def log_lines(self, words: Sequence[str], most: int = 12) -> dict[str, list[str]]:
        """The last lines of each running server's log that hold one of these words."""
        lines = {}
        for name, server in self.servers.items():
            text = server.log.read_text(errors="replace") if server.log else ""
            lines[name] = [line[-300:] for line in text.splitlines() if any(word in line for word in words)][-most:]
        return lines
