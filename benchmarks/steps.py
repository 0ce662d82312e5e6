"""How far a benchmark is: a bar on a terminal, one line for each step elsewhere, both on stderr."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Steps:
    """Steps of a known number; use as a context manager.

    Args:
        console: where to write; stderr by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, soft_wrap=True, highlight=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[left]}"))
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task("", total=None, left="")
        self._total, self._number, self._taken, self._started = 0, 0, 0, 0.0

    def __enter__(self) -> Steps:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def say(self, text: str) -> None:
        """What is going on, outside the count."""
        self._show(text, text, "")

    def begin(self, total: int) -> None:
        """Count from here, to `total`."""
        self._total, self._number, self._taken, self._started = total, 0, 0, time.monotonic()

    def skip_to(self, number: int) -> None:
        """So many steps are behind us, some of them perhaps not taken."""
        self._number = number

    def step(self, text: str, limit: float = float("inf")) -> None:
        """The next step begins.

        Args:
            text: what it is.
            limit: seconds after which the whole ends in any case.
        """
        left = limit
        if self._taken:
            pace = (time.monotonic() - self._started) / self._taken
            left = min(limit, pace * (self._total - self._number))
        remaining = f"about {left:.0f} s left" if left < float("inf") else "time left not yet known"
        self._number += 1
        self._taken += 1
        self._show(text, f"{self._number} of {self._total}: {text}; {remaining}", remaining)

    def _show(self, text: str, line: str, left: str) -> None:
        if self._console.is_terminal:
            total = self._total or None
            self._bar.update(self._task, description=text, left=left, total=total, completed=max(0, self._number - 1))
        else:
            self._console.print(line, markup=False)
