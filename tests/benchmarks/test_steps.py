"""Progress of a benchmark without a terminal: a line per step, with what is left."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from benchmarks.steps import Steps


def lines_of(sink: io.StringIO) -> list[str]:
    return sink.getvalue().splitlines()


def test_without_a_terminal_there_is_a_line_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now, sink = 100.0, io.StringIO()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Steps(Console(file=sink, soft_wrap=True, highlight=False)) as steps:
        steps.say("starting 2 servers")
        steps.begin(10)
        steps.step("video x 8, warming up: stock")
        now += 6
        steps.step("video x 8, round 1 of 5: [off]")
        steps.skip_to(8)
        now += 6
        steps.step("the last but one")
        steps.step("the last", limit=2.0)
    assert lines_of(sink) == [
        "starting 2 servers",
        "1 of 10: video x 8, warming up: stock; time left not yet known",
        "2 of 10: video x 8, round 1 of 5: [off]; about 54 s left",
        "9 of 10: the last but one; about 12 s left",
        "10 of 10: the last; about 2 s left",
    ]


def test_a_terminal_has_a_bar_and_no_lines() -> None:
    sink = io.StringIO()
    with Steps(Console(file=sink, force_terminal=True, width=120)) as steps:
        steps.begin(3)
        steps.step("one")
        steps.step("two")
    assert "1 of 3" not in sink.getvalue()
    assert "two" in sink.getvalue()
