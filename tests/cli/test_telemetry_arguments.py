"""What is added to the command line for logs and traces."""

from __future__ import annotations

import pytest

from vllm_prune.cli import telemetry_arguments
from vllm_prune.cli.telemetry_arguments import TelemetryError, log_arguments, trace_arguments
from vllm_prune.config.logging import ENV, Logging

JSON = ["--logging-config.formatter", "json", "--disable-uvicorn-access-log"]
HTTP = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV, raising=False)


@pytest.mark.parametrize(
    ("section", "variable", "given", "added"),
    [
        ({}, None, [], []),
        ({"requests": True}, None, [], []),
        ({"format": "json"}, None, [], JSON),
        ({}, "json", [], JSON),
        ({"format": "json"}, "text", [], []),
        ({"format": "json", "requests": False}, None, [], JSON[:2]),
        ({"format": "json"}, None, ["--disable-uvicorn-access-log"], JSON[:2]),
        ({"format": "json"}, None, ["--logging-config.formatter=text"], JSON[2:]),
        ({"format": "json"}, None, ["--log-config-file", "mine.json"], JSON[2:]),
    ],
)
def test_log_arguments(
    monkeypatch: pytest.MonkeyPatch,
    section: dict[str, object],
    variable: str | None,
    given: list[str],
    added: list[str],
) -> None:
    if variable is not None:
        monkeypatch.setenv(ENV, variable)
    assert log_arguments(Logging.model_validate(section), given) == added


def test_an_unknown_format_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV, "xml")
    with pytest.raises(TelemetryError, match="VLLM_PRUNE_LOG_FORMAT='xml' is unknown; set it to text or json"):
        log_arguments(Logging(), [])


@pytest.mark.parametrize(
    ("given", "environment", "endpoint", "protocol"),
    [
        ([], {}, None, None),
        ([], {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None, None),
        ([], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, "http://collector:4317", None),
        ([], HTTP, "http://collector:4318/v1/traces", "http/protobuf"),
        ([], HTTP | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a/b"}, "http://a/b", "http/protobuf"),
        ([], HTTP | {"OTEL_SDK_DISABLED": "true"}, None, None),
        (["--otlp-traces-endpoint=http://mine"], HTTP, None, "http/protobuf"),
    ],
)
def test_trace_arguments(
    given: list[str], environment: dict[str, str], endpoint: str | None, protocol: str | None
) -> None:
    added, variables = trace_arguments(given, environment)
    assert added == (["--otlp-traces-endpoint", endpoint] if endpoint else [])
    assert variables == ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": protocol} if protocol else {})


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_arguments, "NEEDED", ("opentelemetry.nowhere",))
    with pytest.raises(TelemetryError, match=r"opentelemetry\.nowhere is not installed; pip install"):
        trace_arguments([], HTTP)
    assert trace_arguments([], {}) == ([], {})
