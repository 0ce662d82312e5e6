"""Runs steps one after the other, each within its own limit and all before a deadline, and writes what each one gave.

A step's file is written again whenever the step has more to say, so that nothing is lost when the machine goes away.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ..speed.rounds import Clock
from .scale import Scale

OK, FAILED, TIMED_OUT, SKIPPED = "ok", "failed", "timed out", "skipped"
GRACE = 10.0
"""Seconds after its limit until a step is interrupted; a step looks at its clock itself."""
AGAIN = 5.0


class StepTimeout(KeyboardInterrupt):
    """A step outran its limit. Not an `Exception`, so that no step takes it for a failure of its own."""


class Skip(Exception):
    """A step, or a part of one, that means nothing here; the message says why."""


@dataclass
class Context:
    """What a step works with.

    Attributes:
        scale: sizes.
        out: folder of the results.
        work: folder for what does not leave the machine, as logs.
        clock: the step's limit, and the deadline where that is nearer.
        result: what the step found; `save` writes it.
        shared: for what later steps use, as running servers.
        problems: parts that failed, by name.
    """

    scale: Scale
    out: Path
    work: Path
    clock: Clock = field(default_factory=Clock)
    step: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def save(self, status: str = "running") -> None:
        """Write the step's file with what there is."""
        content = {**self.about, "step": self.step, "status": status, "problems": self.problems, **self.result}
        target = self.out / f"{self.step}.json"
        draft = self.work / target.name
        draft.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        target.write_bytes(draft.read_bytes())

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part whose failure is noted and does not keep the step's other parts from running."""
        self.tell(name)
        try:
            yield
        except Skip as reason:
            self.result.setdefault("skipped", {})[name] = str(reason)
        except Exception:
            self.problems[name] = traceback.format_exc()
            self.tell(f"{name} failed: {self.problems[name].strip().splitlines()[-1][:300]}")
        self.save()

    def tell(self, text: str) -> None:
        """Print a line with the time that is left."""
        print(f"[{self.step}, {self.clock.left:.0f} s left] {text}", flush=True)


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: also of its file.
        limit: seconds.
        least: seconds without which it is not started.
        run: does the work.
    """

    name: str
    limit: float
    least: float
    run: Callable[[Context], None]


def run_all(steps: Sequence[Step], context: Context, deadline: Clock) -> list[dict[str, Any]]:
    """Run the steps in order; returns one line of summary each."""
    summary: list[dict[str, Any]] = [
        {"step": step.name, "status": SKIPPED, "why": "not reached", "seconds": 0.0} for step in steps
    ]
    for number, step in enumerate(steps):
        if deadline.left < step.least:
            why = f"{deadline.left:.0f} s were left, and it needs at least {step.least:.0f} s"
            summary[number]["why"] = why
        else:
            summary[number] = run_one(step, context, deadline)
        line = summary[number]
        print(f"== {line['step']}: {line['status']} in {line['seconds']:.1f} s {line['why'][-300:]}", flush=True)
        write_summary(context, summary)
    return summary


def run_one(step: Step, context: Context, deadline: Clock) -> dict[str, Any]:
    """Run a step and write its file, whatever becomes of it."""
    context.step, context.result, context.problems = step.name, {"limit": step.limit}, {}
    context.clock = Clock(min(step.limit, deadline.left - GRACE))
    started, status, why = time.monotonic(), OK, ""
    try:
        with interrupted_after(max(1.0, context.clock.left) + GRACE):
            step.run(context)
    except Skip as reason:
        status, why = SKIPPED, str(reason)
    except StepTimeout:
        status, why = TIMED_OUT, f"interrupted in {_place(traceback.format_exc())}"
    except Exception:
        status, why = FAILED, traceback.format_exc()
    if status == OK and context.problems:
        status, why = FAILED, f"failed parts: {', '.join(context.problems)}"
    seconds = time.monotonic() - started
    context.result |= {"why": why, "seconds": seconds}
    try:
        context.save(status)
    except ValueError:
        # A figure that JSON does not have; the rest of the step is in its file of before.
        status, why = FAILED, traceback.format_exc()
    return {"step": step.name, "status": status, "why": why, "seconds": seconds}


def _place(trace: str) -> str:
    places = [line.strip() for line in trace.splitlines() if "benchmarks" in line]
    return places[-1] if places else trace[-200:]


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raise `StepTimeout` in the main thread when the time is over, and again where that had no effect."""

    def raise_timeout(number: int, frame: FrameType | None) -> None:
        raise StepTimeout

    before = signal.signal(signal.SIGALRM, raise_timeout)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def write_summary(context: Context, summary: Sequence[dict[str, Any]]) -> None:
    """Write `summary.json`: the steps in their order, those that did not fit among them."""
    content = {**context.about, "steps": list(summary)}
    (context.out / "summary.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def make_context(scale: Scale, out: Path, about: dict[str, Any]) -> Context:
    """A context with a folder for logs; `about` goes into every file."""
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="vllm-prune-gpu-"))
    return Context(scale, out, work, about={"command": shlex.join(sys.argv), "scale": scale.name, **about})
