"""From SIGTERM to the exit, and what probes say on the way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from vllm.logger import init_logger

from vllm_prune.vllm_compat import shutdown

logger = init_logger("vllm.vllm_prune")

ABORT_SECONDS = 5
"""For the last bytes of requests that the deadline has ended."""
CLOSE_SECONDS = 5
"""For connections that are still open when the last request has ended: slow readers, unfinished uploads."""


class Lifecycle:
    """Whether requests are taken, and how many are being answered.

    Attributes:
        draining: a signal has arrived; nothing new is taken.
        died: the engine died before any signal did.
        active: requests being answered, streams until their end.
    """

    def __init__(self) -> None:
        self.draining = self.died = False
        self.active = 0
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_drain: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._stopped = False

    def supervise(self, engine_client: Any, state: Any, on_drain: Callable[[], None]) -> None:
        """Take over the shutdown of the engine client; called on the event loop before the server listens.

        Args:
            engine_client: vLLM's.
            state: the app's; its HTTP server appears there once it runs.
            on_drain: called on the event loop when the drain begins.
        """
        self._client, self._on_drain = engine_client, on_drain
        self._loop = asyncio.get_running_loop()
        shutdown.on_shutdown(engine_client, self._shutdown)
        self._bounding = asyncio.create_task(_bound(state))

    def enter(self, exits: ExitStack) -> None:
        """Count a request until `exits` closes."""
        self.active += 1
        exits.callback(self._leave)

    def _leave(self) -> None:
        self.active -= 1

    @property
    def dead(self) -> bool:
        """Whether only a restart helps."""
        return self.died or (self._client is not None and self._client.errored and not self.draining)

    def _shutdown(self, original: Callable[[float | None], None], timeout: float | None) -> None:
        on_main = threading.current_thread() is threading.main_thread()
        with self._lock:
            first, self._stopped = not self._stopped, True
        if first:
            self.died = bool(self._client.errored)
            # On the main thread the server has ended already, so there are no requests to wait for.
            if not self.died and not on_main:
                timeout = self._drain(timeout or 0)
        original(timeout)
        if self.died and on_main and self._loop is not None:
            self._loop = None
            logger.error("the engine died; see its messages above")
            # vLLM ends with status 0 here, which supervisors take for an intended exit.
            raise SystemExit(1)

    def _drain(self, seconds: float) -> float:
        """Wait for requests to end, and end them at the deadline; returns the time left for the engine."""
        assert self._loop is not None
        self.draining = True
        self._loop.call_soon_threadsafe(self._on_drain)
        deadline = time.monotonic() + seconds
        logger.info("draining %d requests for at most %g s", self.active, seconds)
        self._wait_until(deadline)
        if self.active and not self._client.errored:
            logger.warning("the deadline ends %d requests", self.active)
            asyncio.run_coroutine_threadsafe(shutdown.abort_all(self._client), self._loop)
            self._wait_until(time.monotonic() + ABORT_SECONDS)
        return max(float(ABORT_SECONDS), deadline - time.monotonic())

    def _wait_until(self, deadline: float) -> None:
        while self.active and time.monotonic() < deadline and not self._client.errored:
            time.sleep(0.05)


async def _bound(state: Any) -> None:
    while getattr(state, "server", None) is None:
        await asyncio.sleep(0.05)
    shutdown.bound_shutdown(state.server, CLOSE_SECONDS)
