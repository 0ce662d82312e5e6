"""Compaction commands from the scheduler to the workers. Importable everywhere, as they are pickled on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm.v1.core.sched.output import SchedulerOutput


@dataclass(frozen=True)
class Compaction:
    """Shorten the cache of one request, at the start of the step that carries this.

    Attributes:
        request_id: the request.
        rows: rows cached, L; all of them are written when the step starts.
        keep: rows to keep, C.
        evicted: rows evicted before this compaction; row r of the cache is position r + `evicted` at the earliest.
        source: blocks that hold the rows.
        target: private blocks that take the kept rows.
        group: cache group that the blocks belong to; other groups of the model keep theirs.
    """

    request_id: str
    rows: int
    keep: int
    evicted: int
    source: tuple[int, ...]
    target: tuple[int, ...]
    group: int = 0

    @property
    def evicted_after(self) -> int:
        """Rows evicted once this is done: logical length minus cached length."""
        return self.evicted + self.rows - self.keep


@dataclass
class CompactingOutput(SchedulerOutput):
    """vLLM's scheduler output with our commands; made by changing the class of a finished output.

    Attributes:
        compactions: to run before the step.
        traces: trace headers of the requests whose work in this step gets spans, by id.
    """

    compactions: list[Compaction] = field(default_factory=list)
    traces: dict[str, Mapping[str, str]] = field(default_factory=dict)
