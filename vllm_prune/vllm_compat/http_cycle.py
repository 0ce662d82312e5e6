"""uvicorn's `RequestResponseCycle` of httptools: it sends chunks to clients of HTTP/1.0, which do not know them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


def end_answer_by_closing(send: Send) -> Send:
    """A `send` whose answers of unknown length end with the connection.

    Args:
        send: uvicorn's. With h11 it comes back as it is, as h11 does the same by itself.
    """
    cycle = getattr(send, "__self__", None)
    if not all(hasattr(cycle, name) for name in ("chunked_encoding", "expected_content_length", "keep_alive")):
        return send
    closing = False

    async def sending(message: Message) -> None:
        nonlocal closing
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            closing = b"content-length" not in names
            if closing:
                cycle.chunked_encoding, cycle.keep_alive = False, False  # type: ignore[union-attr]
        elif closing and message["type"] == "http.response.body":
            # Whatever comes is the length that was expected.
            cycle.expected_content_length = len(message.get("body", b""))  # type: ignore[union-attr]
        await send(message)

    return sending
