"""What the front end sees of one HTTP request while it is answered, for its log line and its trace spans.

The middleware opens a record; whoever times a stage or refuses the request adds to it through the context, and
vLLM's own statistics join it by the request's id. Nothing in a record is text of a client's.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any


@dataclass(frozen=True)
class Stage:
    """A part of the work on a request; `start` and `end` in seconds of `time.perf_counter`."""

    name: str
    start: float
    end: float


@dataclass
class Record:
    """One HTTP request. Times are seconds of `time.perf_counter`, but for `epoch`, which is the clock at `began`.

    Attributes:
        id: what `X-Request-Id` of the answer says.
        model: name of the served model that was asked for, None where there is none of that name.
        rejected: reason of `rejections_total`, None for a request that was not refused by us.
        scope: the budget and what came of it.
        engine: vLLM's `FinishedRequestStats`, one for each engine request behind this one, with the arrival time.
        complete: the whole answer was handed to the connection.
    """

    id: str
    method: str
    began: float = field(default_factory=time.perf_counter)
    epoch: float = field(default_factory=time.time)
    route: str | None = None
    status: int = 0
    model: str | None = None
    stream: bool = False
    rejected: str | None = None
    scope: Any = None
    stages: list[Stage] = field(default_factory=list)
    engine: list[tuple[float, Any]] = field(default_factory=list)
    key: str | None = None
    first_byte: float | None = None
    ended: float | None = None
    complete: bool = False

    def nanoseconds(self, moment: float) -> int:
        """Nanoseconds since the epoch of a moment on `time.perf_counter`."""
        return int((self.epoch + moment - self.began) * 1e9)


RECORD: ContextVar[Record | None] = ContextVar("vllm_prune_record", default=None)

WAITING: dict[str, list[Record]] = {}
"""Records that wait for vLLM's statistics, by the id that their engine requests carry."""


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time a part of the work on the request at hand; does nothing outside of one."""
    record = RECORD.get()
    if record is None:
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        record.stages.append(Stage(name, start, time.perf_counter()))


def spent(name: str, seconds: float) -> None:
    """Add a stage that was timed elsewhere and has ended just now."""
    if (record := RECORD.get()) is not None:
        now = time.perf_counter()
        record.stages.append(Stage(name, now - seconds, now))


def timed(name: str, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A coroutine function whose run is a stage."""

    @wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        with stage(name):
            return await function(*args, **kwargs)

    return run


def rejected(reason: str) -> None:
    """Remember why the request at hand was refused."""
    if (record := RECORD.get()) is not None:
        record.rejected = reason


def follow(request: Any, raw_request: Any) -> None:
    """Take what may be told about a generation request, and wait for the statistics of its engine requests.

    Args:
        request: vLLM's request model.
        raw_request: the HTTP request.
    """
    record = RECORD.get()
    if record is None:
        return
    models = raw_request.app.state.openai_serving_models
    if request.model is None or models.is_base_model(request.model) or request.model in models.lora_requests:
        record.model = request.model or models.model_name()
    record.stream = bool(getattr(request, "stream", False))
    header = raw_request.headers.get("x-request-id")
    if type(request).__name__ == "ResponsesRequest":
        record.key = request.request_id
    elif header is not None:
        record.key = header
    else:
        if "request_id" not in request.model_fields_set:
            request.request_id = record.id
        record.key = request.request_id
    WAITING.setdefault(record.key, []).append(record)


def budgeted(scope: Any) -> Any:
    """Remember the budget of the request at hand; returns it."""
    if (record := RECORD.get()) is not None:
        record.scope = scope
    return scope


def arrived(stats: Any) -> None:
    """Hand vLLM's statistics of a finished engine request to the record that waits for them.

    Two requests in flight under one id cannot be told apart, and get none.
    """
    records = WAITING.get(key_of(stats.request_id or ""), ())
    if len(records) == 1:
        records[0].engine.append((time.perf_counter(), stats))


def key_of(engine_id: str) -> str:
    """The id that vLLM's routes made an engine request's id from."""
    if engine_id.startswith("chatcmpl-"):
        return engine_id.removeprefix("chatcmpl-")
    if engine_id.startswith("cmpl-"):
        return engine_id.removeprefix("cmpl-").rpartition("-")[0]
    return engine_id.rpartition("_")[0]


def forget(record: Record) -> None:
    """Stop waiting."""
    waiting = WAITING.get(record.key or "", [])
    if record in waiting:
        waiting.remove(record)
        if not waiting:
            del WAITING[record.key or ""]
