"""The engine client's shutdown and uvicorn's, as far as the server's drain has to steer them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


def on_shutdown(engine_client: Any, drained: Callable[[Callable[[float | None], None], float | None], None]) -> None:
    """Put `drained(original, timeout)` in the place of the engine client's `shutdown`.

    vLLM calls it when a signal arrives, in a thread of its own, and again when the server has ended.
    """
    original = engine_client.shutdown

    @wraps(original)
    def shutdown(timeout: float | None = None) -> None:
        drained(original, timeout)

    engine_client.shutdown = shutdown


async def abort_all(engine_client: Any) -> None:
    """End every request that the engine has, with `finish_reason` "abort"."""
    await engine_client.pause_generation(mode="abort", clear_cache=False)


def bound_shutdown(http_server: Any, seconds: int) -> None:
    """Close connections that are still open so long after the last request; uvicorn would wait for them for ever."""
    http_server.config.timeout_graceful_shutdown = seconds
