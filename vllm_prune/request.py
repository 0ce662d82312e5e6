"""One request while it is served: whose it is, what was decided, what came of it, and where its time went.

`CURRENT` is the only context variable of the project. The server's outermost middleware sets it for every HTTP
request; under plain `vllm serve`, which has no middleware of ours, the wrapper of vLLM's renderer does. Tasks that a
request starts see the same context, and it lives until its answer, or the stream of it, has ended. Apart from
`document`, it holds no free text from the client: log lines and metric labels may use the rest as it is.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Protocol
from weakref import WeakSet, WeakValueDictionary

from .config.tenants import Tenant
from .policy import Decision
from .telemetry import metrics


@dataclass(frozen=True)
class Stage:
    """A part of the work on a request; `start` and `end` in seconds of `time.perf_counter`."""

    name: str
    start: float
    end: float


class Reservation(Protocol):
    """Room that the server's admission has reserved for a request."""

    def resize(self, visual: int | None, prompts: Sequence[int]) -> None:
        """Put the true size of prompts that are prepared now in place of their upper bound.

        Args:
            visual: kept visual tokens; None leaves the upper bound.
            prompts: tokens of each, kept visual tokens included.

        Raises:
            BudgetError: more than this server ever admits.
        """


class _EngineRequest:
    """Contexts whose engine requests carry one id: several where clients send the same `X-Request-Id` at once."""

    def __init__(self) -> None:
        self.contexts: WeakSet[RequestContext] = WeakSet()


@dataclass(eq=False)
class RequestContext:
    """One request. Times are seconds of `time.perf_counter`, but for `epoch`, which is the clock at `began`.

    Attributes:
        id: unique among all requests of this process; a KV budget carries it to the scheduler and back.
        request_id: what `X-Request-Id` of the answer says; clients may repeat it.
        model: name of the served model in the request, None where there is none of that name.
        rejected: reason of `rejections_total`, None for a request that was not refused by us.
        tenant: whose request it is, None on servers without tenants.
        decision: the budgets in force, None until they are decided.
        items: the processor's report on each media item.
        tallies: the scheduler's latest KV report on each engine request, by the engine request's id.
        reservation: room in the server's admission, None where nothing is admitted.
        media_param: request field that holds the media.
        document: the parsed body, None again once the request is admitted.
        media_items: media items that were loaded so far.
        body_bytes: length of the HTTP request's body.
        engine: vLLM's `FinishedRequestStats` of each engine request, with their time of arrival.
        prepared: vLLM's request model, where the renderer's wrapper has made this context for it; else None.
        engine_requests: what ties it to its engine requests.
        exits: closed when the request has been answered, however that ends.
        complete: the whole answer was handed to the connection.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    request_id: str = ""
    method: str = ""
    route: str | None = None
    status: int = 0
    model: str | None = None
    stream: bool = False
    rejected: str | None = None
    tenant: Tenant | None = None
    decision: Decision | None = None
    items: list[dict[str, Any]] = field(default_factory=list)
    tallies: dict[str, dict[str, Any]] = field(default_factory=dict)
    reservation: Reservation | None = None
    media_param: str = "messages"
    document: Any = None
    media_items: int = 0
    body_bytes: int = 0
    began: float = field(default_factory=time.perf_counter)
    epoch: float = field(default_factory=time.time)
    first_byte: float | None = None
    ended: float | None = None
    complete: bool = False
    stages: list[Stage] = field(default_factory=list)
    engine: list[tuple[float, Any]] = field(default_factory=list)
    prepared: Any = None
    exits: ExitStack = field(default_factory=ExitStack)
    engine_requests: list[_EngineRequest] = field(default_factory=list)
    _in_flight: bool = False

    def __post_init__(self) -> None:
        _LIVE[self.id] = self

    def nanoseconds(self, moment: float) -> int:
        """Nanoseconds since the epoch of a moment on `time.perf_counter`."""
        return int((self.epoch + moment - self.began) * 1e9)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a part of the work."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages.append(Stage(name, start, time.perf_counter()))

    def add_stage(self, name: str, seconds: float) -> None:
        """Add a part of the work that was timed elsewhere and has ended just now."""
        now = time.perf_counter()
        self.stages.append(Stage(name, now - seconds, now))

    def reject(self, reason: str) -> None:
        """Count the refusal of this request; `reason` is one of a fixed set."""
        self.rejected = reason
        metrics.count_rejection(reason)

    def decide(self, decision: Decision) -> None:
        """Set the budgets in force, and count what the operator's limits changed."""
        self.decision = decision
        for entry in decision.clamped:
            metrics.count_clamped(entry["reason"])

    def start_answer(self) -> None:
        """Count the request among those in flight until `exits` closes, with the visual tokens it keeps."""
        self._in_flight = True
        metrics.inflight(1)
        self.exits.callback(self._end_answer)

    def _end_answer(self) -> None:
        self._in_flight = False
        metrics.inflight(-1, -sum(item["kept_tokens"] for item in self.items))

    def record_items(self, reports: Sequence[Mapping[str, Any]]) -> None:
        """Count what was done to media items of this request, and keep the reports for `usage`."""
        if not reports:
            return
        for item in reports:
            metrics.count_visual(item["modality"], item["strategy"], item["input_tokens"], item["kept_tokens"])
        metrics.observe_request(sum(i["input_tokens"] for i in reports), sum(i["kept_tokens"] for i in reports))
        self.items.extend(dict(item) for item in reports)
        if self._in_flight:
            metrics.inflight(0, sum(item["kept_tokens"] for item in reports))
        if any(item["capped"] for item in reports):
            self._record_cap(sum(item["input_tokens"] for item in reports))

    def _record_cap(self, input_tokens: int) -> None:
        metrics.count_clamped("max_tokens")
        if self.decision is not None and self.decision.spec is not None:
            applied = self.decision.spec.limit
            entry = {"param": "pruning.visual", "requested": input_tokens, "applied": applied, "reason": "max_tokens"}
            self.decision = replace(self.decision, clamped=(*self.decision.clamped, entry))

    def record_tally(self, engine_request_id: str, tally: Mapping[str, Any]) -> None:
        """Keep the scheduler's latest KV report on an engine request of this request."""
        already = len(self.clamped())
        self.tallies[engine_request_id] = dict(tally)
        for entry in self.clamped()[already:]:
            metrics.count_clamped(entry["reason"])

    def clamped(self) -> list[dict[str, Any]]:
        """What the operator's limits and the length of the prompt changed; the same change is listed once."""
        entries = list(self.decision.clamped) if self.decision is not None else []
        for tally in self.tallies.values():
            entries += [entry for entry in tally.get("clamped", ()) if entry not in entries]
        return entries

    def record_engine(self, stats: Any) -> None:
        """Keep vLLM's statistics of a finished engine request of this request."""
        self.engine.append((time.perf_counter(), stats))

    def engine_id(self) -> str:
        """The id for vLLM to make its ids from: `request_id`, or one of ours while another request has the same."""
        holder = _ENGINE_IDS.get(self.request_id)
        if holder is None or holder.ended is not None:
            _ENGINE_IDS[self.request_id] = holder = self
        return self.request_id if holder is self else f"{self.request_id}-{self.id[:8]}"

    def add_engine_request(self, engine_request_id: str) -> None:
        """Tie an engine request to this request, by the id that vLLM's statistics will name."""
        shared = _ENGINE_REQUESTS.get(engine_request_id)
        if shared is None:
            shared = _ENGINE_REQUESTS[engine_request_id] = _EngineRequest()
        shared.contexts.add(self)
        self.engine_requests.append(shared)

    def forget_engine_requests(self) -> None:
        """Take no more of vLLM's statistics, so that a request with the same id can."""
        for shared in self.engine_requests:
            shared.contexts.discard(self)
        self.engine_requests.clear()

    def usage(self) -> dict[str, Any]:
        """The `usage.pruning` object of the contract."""
        decision = self.decision or Decision(None)
        kv = kv_summary(list(self.tallies.values())) if decision.kv is not None else None
        return {"visual": summary(self.items), "kv": kv, "clamped": self.clamped()}


CURRENT: ContextVar[RequestContext | None] = ContextVar("vllm_prune_request", default=None)

_LIVE: WeakValueDictionary[str, RequestContext] = WeakValueDictionary()
_ENGINE_IDS: WeakValueDictionary[str, RequestContext] = WeakValueDictionary()
_ENGINE_REQUESTS: WeakValueDictionary[str, _EngineRequest] = WeakValueDictionary()


def current() -> RequestContext | None:
    """The request that the running task works on, None outside of one."""
    return CURRENT.get()


def live(context_id: str) -> RequestContext | None:
    """The request of that id, None when it has ended."""
    return _LIVE.get(context_id)


def context_of_engine_request(engine_request_id: str) -> RequestContext | None:
    """The request behind an engine request; None when it has ended, or when two in flight share the id."""
    shared = _ENGINE_REQUESTS.get(engine_request_id)
    contexts = list(shared.contexts) if shared is not None else []
    return contexts[0] if len(contexts) == 1 else None


def reject(reason: str) -> None:
    """Count a refusal, and mark the current request where there is one."""
    if (context := CURRENT.get()) is not None:
        context.reject(reason)
    else:
        metrics.count_rejection(reason)


def add_stage(name: str, seconds: float) -> None:
    """Add a part of the work on the current request that was timed elsewhere and has ended just now."""
    if (context := CURRENT.get()) is not None:
        context.add_stage(name, seconds)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time a part of the work on the current request; does nothing outside of one."""
    context = CURRENT.get()
    if context is None:
        yield
        return
    with context.stage(name):
        yield


def timed(name: str, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A coroutine function whose run is a stage of the current request."""

    @wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        with stage(name):
            return await function(*args, **kwargs)

    return run


def summary(items: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Strategy and token counts over the media of a request; None for a request without media."""
    if not items:
        return None
    used = sorted({item["strategy"] for item in items if item["strategy"] != "none"}) or ["none"]
    return {
        "strategy": "+".join(used),
        "input_tokens": sum(item["input_tokens"] for item in items),
        "kept_tokens": sum(item["kept_tokens"] for item in items),
    }


def kv_summary(tallies: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What eviction did to a request: sums over its choices, lengths of its longest prompt; None before it ends."""
    if not tallies:
        return None
    longest = max(tallies, key=lambda tally: tally["prompt_tokens"])
    sums = {key: sum(tally[key] for tally in tallies) for key in ("evicted_tokens", "freed_blocks", "compactions")}
    return {key: longest[key] for key in ("strategy", "prompt_tokens", "kept_tokens")} | sums
