"""HTTP itself: HEAD on probes, and answers of unknown length for HTTP/1.0."""

from __future__ import annotations

from starlette.types import Message, Scope, Send

from vllm_prune.vllm_compat.http_cycle import end_answer_by_closing

from .paths import path_of

PROBES = ("/health", "/health/live", "/health/ready", "/health/startup", "/metrics", "/metrics/")


def answer_head_like_get(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """Make a HEAD on a probe the GET that its route knows, and keep the answer's body back."""
    if scope["method"] != "HEAD" or path_of(scope) not in PROBES:
        return scope, send

    async def without_body(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
        elif not message.get("more_body", False):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return {**scope, "method": "GET"}, without_body


def without_chunks(scope: Scope, send: Send) -> Send:
    """For a client of HTTP/1.0, which does not know chunks: end an answer of unknown length with the connection."""
    if scope.get("http_version") != "1.0":
        return send
    return end_answer_by_closing(send)
