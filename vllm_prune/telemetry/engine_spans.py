"""OpenTelemetry spans from inside the engine: `encode`, `score` and `compact`, each under its request's server span.

The scheduler has the trace of each request and the worker does the work, so the scheduler sends the worker the
contexts of the requests of a step. The tracer is the one that vLLM makes in every worker when
`--otlp-traces-endpoint` is set. On a GPU the times are those of launching; the work overlaps the step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .. import __version__

Headers = Mapping[str, str]

_scores: list[tuple[str, int, int]] | None = None
"""Strategy, start and end in nanoseconds of what was scored since `encoding` began; None outside of it."""


def contexts(requests: Mapping[str, Any], output: Any, compacted: list[str]) -> dict[str, Headers]:
    """Trace headers of the requests that a step encodes media of, or compacts; empty without tracing.

    Args:
        requests: the scheduler's, by id; vLLM drops the headers of clients where it exports no spans.
        output: the scheduler's output.
        compacted: ids of requests to compact.
    """
    busy = dict.fromkeys([*output.scheduled_encoder_inputs, *compacted])
    return {name: requests[name].trace_headers for name in busy if name in requests and requests[name].trace_headers}


def scored(strategy: str, seconds: float) -> None:
    """Record that the tokens of an item were chosen just now."""
    if _scores is not None:
        now = time.time_ns()
        _scores.append((strategy, now - int(seconds * 1e9), now))


@contextmanager
def encoding(traces: Mapping[str, Headers], items: Mapping[str, list[int]]) -> Iterator[None]:
    """Time a pass of the vision tower for all requests of a step.

    Requests share the pass, and with it the times: their spans say with how many. The scores of a pass are
    one span, from the first to the last.

    Args:
        traces: from `contexts`.
        items: indices of each request's media that the pass encodes.
    """
    global _scores
    here = [name for name in items if name in traces]
    if not here:
        yield
        return
    _scores, start = [], time.time_ns()
    try:
        yield
        stop = time.time_ns()
        for name in here:
            about = {"vllm_prune.items": len(items[name]), "vllm_prune.requests_in_pass": len(items)}
            parent = _emit("encode", start, stop, traces[name], about)
            if _scores:
                attributes = {"vllm_prune.strategies": sorted({strategy for strategy, _, _ in _scores})}
                _emit("score", _scores[0][1], _scores[-1][2], parent, attributes)
    finally:
        _scores = None


def compacted(headers: Headers | None, seconds: float, strategy: str, rows: int, keep: int) -> None:
    """Record that a compaction has ended just now; scoring is part of it."""
    if headers:
        now = time.time_ns()
        about = {"vllm_prune.strategy": strategy, "vllm_prune.rows": rows, "vllm_prune.keep": keep}
        _emit("compact", now - int(seconds * 1e9), now, headers, about)


def _emit(name: str, start: int, stop: int, parent: Headers, attributes: dict[str, Any]) -> dict[str, str]:
    """Export one span; returns the headers that make another one its child."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()
    tracer = trace.get_tracer("vllm_prune", __version__)
    span = tracer.start_span(name, context=propagator.extract(parent), start_time=start, attributes=attributes)
    span.end(stop)
    carrier: dict[str, str] = {}
    propagator.inject(carrier, context=trace.set_span_in_context(span))
    return carrier
