"""OpenTelemetry spans: one server span per request that vLLM's own `llm_request` span hangs under.

The tracer provider and its exporter are vLLM's, made where `--otlp-traces-endpoint` is set; without it nothing of
OpenTelemetry is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_prune import __version__
from vllm_prune.request import RequestContext

from .logs import fields
from .request_id import RawHeaders

CONTEXT_HEADERS = (b"traceparent", b"tracestate")
ENGINE_STAGES = ("decode", "prefill", "queued")


def wanted(vllm_config: Any) -> bool:
    """Whether vLLM exports spans, and we do then, too."""
    return vllm_config.observability_config.otlp_traces_endpoint is not None


def begin(context: RequestContext, headers: RawHeaders) -> tuple[Any, RawHeaders]:
    """Start the span of a request below the client's, if it sent a context.

    Returns:
        The span, and the headers with its context in place of the client's: vLLM reads its parent there.
    """
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()
    carrier = {name.decode(): value.decode("latin-1") for name, value in headers if name in CONTEXT_HEADERS}
    span = _tracer().start_span(
        f"{context.method} {context.route}" if context.route else context.method,
        context=propagator.extract(carrier),
        kind=trace.SpanKind.SERVER,
        start_time=context.nanoseconds(context.began),
    )
    ours: dict[str, str] = {}
    propagator.inject(ours, context=trace.set_span_in_context(span))
    kept = [pair for pair in headers if pair[0] not in CONTEXT_HEADERS]
    return span, [*kept, *((name.encode(), value.encode()) for name, value in ours.items())]


def end(context: RequestContext, span: Any) -> None:
    """Give the span its attributes and children, and end it."""
    from opentelemetry import trace

    if span.is_recording():
        span.set_attributes(attributes(context))
        if context.status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        for name, start, stop in children(context):
            child = _tracer().start_span(
                name, context=trace.set_span_in_context(span), start_time=context.nanoseconds(start)
            )
            child.end(context.nanoseconds(stop))
    span.end(context.nanoseconds(context.ended if context.ended is not None else context.began))


def children(context: RequestContext) -> list[tuple[str, float, float]]:
    """Name, start and end of the stages that were timed.

    vLLM times the engine's stages, by durations. They are laid end to end before the arrival of the last token,
    so their place is right to within the way from the engine to here.
    """
    spans = [(one.name, one.start, one.end) for one in context.stages]
    for arrival, stats in context.engine:
        stop = arrival
        for name in ENGINE_STAGES:
            start = stop - getattr(stats, f"{name}_time")
            spans.append((name, start, stop))
            stop = start
    return spans


def attributes(context: RequestContext) -> dict[str, Any]:
    """The log line's fields as span attributes: HTTP's by their OpenTelemetry names, the rest under ours."""
    line = fields(context)
    standard_names = {"http.request.method": line.pop("method"), "http.response.status_code": line.pop("status")}
    for name, standard in (("route", "http.route"), ("model", "gen_ai.request.model")):
        if (value := line.pop(name, None)) is not None:
            standard_names[standard] = value
    return standard_names | _flat("vllm_prune", line)


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        parts = [_flat(f"{prefix}.{key}", item) for key, item in value.items()]
        return {key: item for part in parts for key, item in part.items()}
    return {prefix: value}


def _tracer() -> Any:
    from opentelemetry import trace

    return trace.get_tracer("vllm_prune", __version__)
