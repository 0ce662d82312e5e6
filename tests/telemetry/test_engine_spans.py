"""Spans from inside the engine: who gets one, under what, and that nobody does without a trace."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from vllm_prune.telemetry import engine_spans

TRACES = {name: {"traceparent": f"00-{n:032x}-{n:016x}-01"} for n, name in ((1, "one"), (2, "two"))}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


def test_requests_of_one_pass_get_a_span_each(spans: InMemorySpanExporter) -> None:
    with engine_spans.encoding(TRACES, {"one": [0], "two": [0, 1], "untraced": [0]}):
        engine_spans.scored("uniform", 0.001)
        engine_spans.scored("divprune", 0.002)
    found = spans.get_finished_spans()
    assert [span.name for span in found] == ["encode", "score"] * 2
    for number, (encode, score) in ((1, found[:2]), (2, found[2:])):
        assert encode.context.trace_id == score.context.trace_id == number
        assert encode.parent is not None
        assert score.parent is not None
        assert (encode.parent.span_id, score.parent.span_id) == (number, encode.context.span_id)
        assert dict(encode.attributes or {}) == {"vllm_prune.items": number, "vllm_prune.requests_in_pass": 3}
        assert dict(score.attributes or {}) == {"vllm_prune.strategies": ("divprune", "uniform")}


def test_no_span_without_a_trace_and_none_after_a_failure(spans: InMemorySpanExporter) -> None:
    with engine_spans.encoding({}, {"one": [0]}):
        engine_spans.scored("uniform", 0.001)
    with pytest.raises(MemoryError), engine_spans.encoding(TRACES, {"one": [0]}):
        raise MemoryError
    engine_spans.scored("uniform", 0.001)
    engine_spans.compacted(None, 0.001, "knorm", 10, 5)
    assert spans.get_finished_spans() == ()
    engine_spans.compacted(TRACES["two"], 0.001, "knorm", 10, 5)
    (compact,) = spans.get_finished_spans()
    assert compact.start_time is not None
    assert compact.end_time is not None
    assert compact.end_time - compact.start_time == 1_000_000


def test_only_traced_work_is_sent_to_the_workers() -> None:
    requests: dict[str, Any] = {name: SimpleNamespace(trace_headers=own) for name, own in TRACES.items()}
    requests["untraced"] = SimpleNamespace(trace_headers=None)
    output = SimpleNamespace(scheduled_encoder_inputs={"one": [0], "untraced": [0]})
    assert engine_spans.contexts(requests, output, []) == {"one": TRACES["one"]}
    assert engine_spans.contexts(requests, output, ["two", "gone"]) == TRACES
    assert engine_spans.contexts(requests, SimpleNamespace(scheduled_encoder_inputs={}), []) == {}
