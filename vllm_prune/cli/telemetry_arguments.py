"""Arguments of `vllm serve` that follow from how logs and traces are wanted."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

from ..config.logging import Logging

TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc", "opentelemetry.exporter.otlp.proto.http")


class TelemetryError(ValueError):
    """Logs or traces cannot be set up as configured; the message says what to change."""


def log_arguments(logging: Logging, arguments: Sequence[str]) -> list[str]:
    """JSON by vLLM's own formatter where it is wanted, unless the user has said how to log.

    Our line per request then replaces uvicorn's, which tells less.
    """
    try:
        wanted = logging.resolved_format()
    except ValueError as error:
        raise TelemetryError(str(error)) from None
    chosen_by_user = any(argument.startswith(("--logging-config", "--log-config-file")) for argument in arguments)
    added = ["--logging-config.formatter", "json"] if wanted == "json" and not chosen_by_user else []
    if wanted == "json" and logging.lines() and "--disable-uvicorn-access-log" not in arguments:
        added.append("--disable-uvicorn-access-log")
    return added


def trace_arguments(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Hand OpenTelemetry's standard variables to vLLM, which has a flag in place of the endpoint.

    Returns:
        Arguments to add, and variables to set: vLLM reads the protocol from the variable for traces alone.

    Raises:
        TelemetryError: an endpoint is set and OpenTelemetry is not installed.
    """
    flagged = any(argument.split("=", 1)[0] == "--otlp-traces-endpoint" for argument in arguments)
    protocol = environment.get(TRACES_PROTOCOL) or environment.get(PROTOCOL)
    endpoint = environment.get(TRACES_ENDPOINT)
    if not endpoint and (base := environment.get(ENDPOINT)):
        # The specification: over HTTP the signal's path is added to the common endpoint.
        endpoint = f"{base.rstrip('/')}/v1/traces" if protocol == "http/protobuf" else base
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or not (flagged or endpoint):
        return [], {}
    if missing := [name for name in NEEDED if not _installed(name)]:
        raise TelemetryError(
            f"a trace endpoint is set, but {missing[0]} is not installed; "
            f"pip install opentelemetry-sdk opentelemetry-exporter-otlp, or unset {ENDPOINT}"
        )
    added = [] if flagged else ["--otlp-traces-endpoint", str(endpoint)]
    return added, {TRACES_PROTOCOL: protocol} if protocol else {}


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
