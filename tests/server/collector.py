"""A collector of OTLP traces over HTTP, in the test's own process."""

from __future__ import annotations

import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from .running import Running


class Collector(Running):
    """Keeps the spans that are posted to `/v1/traces`; use as a context manager."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                found = ExportTraceServiceRequest.FromString(body) if self.path == "/v1/traces" else None
                self.send_response(404 if found is None else 200)
                self.end_headers()
                if found is not None:
                    spans.extend(s for r in found.resource_spans for scope in r.scope_spans for s in scope.spans)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def wait(self, enough: Callable[[list[Any]], bool], seconds: float = 15) -> list[Any]:
        """The spans, once there are enough of them or the time is over."""
        deadline = time.monotonic() + seconds
        while not enough(self.spans) and time.monotonic() < deadline:
            time.sleep(0.1)
        return list(self.spans)


def attributes(span: Any) -> dict[str, Any]:
    """Attributes of a span as plain values."""
    return {pair.key: _plain(pair.value) for pair in span.attributes}


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_plain(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)
