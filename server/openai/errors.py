"""Refusals before any work, with the bodies and headers of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fastapi.responses import JSONResponse

from vllm_prune.request import reject

Reason = Literal[
    "body_timeout",
    "body_too_large",
    "capacity",
    "draining",
    "media_queue",
    "media_unavailable",
    "tenant_concurrency",
    "tenant_rate",
    "unauthorized",
    "wait_timeout",
]
"""Values of the label `reason` of `vllm_prune_rejections_total` that come from here."""


class Refusal(Exception):
    """A request that is not taken.

    Args:
        status: HTTP status.
        reason: why, as the metric counts it.
        message: what the client is to change.
        kind: `error.type` of the body.
        code: `error.code` of the body.
        param: request field to blame.
        headers: of the answer, `Retry-After` among them.
    """

    def __init__(
        self,
        status: int,
        reason: Reason,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})
        self.error = {"message": message, "type": kind, "param": param, "code": code}

    def response(self) -> JSONResponse:
        """The answer; counts the refusal."""
        reject(self.reason)
        return JSONResponse({"error": self.error}, status_code=self.status, headers=self.headers)


def overloaded(reason: Reason, message: str, retry_after: int) -> Refusal:
    """503: this server can answer a little later, another replica perhaps at once."""
    return Refusal(503, reason, message, "server_error", "server_overloaded", headers={"Retry-After": str(retry_after)})


def shutting_down(retry_after: int) -> Refusal:
    """503: only another replica can answer."""
    message = "the server is shutting down; retry, and another replica or its successor will answer"
    return Refusal(
        503, "draining", message, "server_error", "server_shutting_down", headers={"Retry-After": str(retry_after)}
    )


def too_many(reason: Reason, message: str, retry_after: int) -> Refusal:
    """429: a tenant is over its own limit."""
    return Refusal(
        429, reason, message, "rate_limit_error", "rate_limit_exceeded", headers={"Retry-After": str(retry_after)}
    )


def unauthorized(message: str) -> Refusal:
    """401: no key, or one that nobody here has."""
    return Refusal(401, "unauthorized", message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
