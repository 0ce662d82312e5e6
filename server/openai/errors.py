"""Refusals before any work, with the bodies and headers of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastapi.responses import JSONResponse

from vllm_prune.request import reject

Reason = Literal[
    "body_timeout",
    "body_too_large",
    "capacity",
    "draining",
    "invalid_body",
    "invalid_budget",
    "media_queue",
    "media_unavailable",
    "not_active",
    "observed_requests",
    "tenant_concurrency",
    "tenant_rate",
    "unauthorized",
    "wait_timeout",
]
"""Values of the label `reason` of `vllm_prune_rejections_total`."""


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
        code: str | int | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})
        self.error = {"message": message, "type": kind, "param": param, "code": code}

    def response(self, path: str = "") -> JSONResponse:
        """The answer on the route at `path`; counts the refusal."""
        reject(self.reason)
        body: dict[str, Any] = {"error": self.error}
        if path.startswith("/v1/messages"):
            # Anthropic's clients look for this beside the same `error` object.
            body["type"] = "error"
        return JSONResponse(body, status_code=self.status, headers=self.headers)


def bad_request(message: str, param: str | None, reason: Reason, status: int = 400) -> Refusal:
    """400, or another status that means the same: the client has to change `param`."""
    return Refusal(status, reason, message, "BadRequestError", status, param)


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
    """401: no key, or an unknown one."""
    return Refusal(401, "unauthorized", message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
