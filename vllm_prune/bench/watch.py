"""The server's KV cache metrics, sampled while the load runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

EVERY_SECONDS = 1.0
"""More often, reading them would take a measurable share of a small server's time."""
KV_USAGE = "vllm:kv_cache_usage_perc"
RUNNING = "vllm:num_requests_running"
PREEMPTIONS = "vllm:num_preemptions_total"


@dataclass
class Peaks:
    """Highest values seen.

    Attributes:
        kv_usage: share of the KV cache in use, 0 to 1.
        running: requests in the running batch.
        preemptions: since the watch began.
        samples: how often the metrics were read.
    """

    kv_usage: float = 0.0
    running: int = 0
    preemptions: int = 0
    samples: int = 0


class Watch:
    """Reads `/metrics` again and again; an async context manager.

    Args:
        url: of the server.
        headers: to send along.
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.peaks = Peaks()
        self._url, self._headers = f"{url}/metrics", headers
        self._first_preemptions: float | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        async with aiohttp.ClientSession(headers=self._headers) as session:
            while True:
                with suppress(aiohttp.ClientError, ValueError):
                    async with session.get(self._url) as reply:
                        self._take(await reply.text())
                await asyncio.sleep(EVERY_SECONDS)

    def _take(self, text: str) -> None:
        totals = sums(text, (KV_USAGE, RUNNING, PREEMPTIONS))
        if self._first_preemptions is None:
            self._first_preemptions = totals[PREEMPTIONS]
        peaks = self.peaks
        peaks.samples += 1
        peaks.kv_usage = max(peaks.kv_usage, totals[KV_USAGE])
        peaks.running = max(peaks.running, int(totals[RUNNING]))
        peaks.preemptions = int(totals[PREEMPTIONS] - self._first_preemptions)


def sums(text: str, names: Sequence[str]) -> dict[str, float]:
    """Sum over all labels of each sample name in a server's metrics; 0 for one that is not there."""
    totals = dict.fromkeys(names, 0.0)
    # The parser takes longer over all of a server's metrics than the server does.
    lines = (line for line in text.splitlines(keepends=True) if line.startswith(tuple(names)))
    for family in text_string_to_metric_families("".join(lines)):
        for sample in family.samples:
            if sample.name in totals:
                totals[sample.name] += sample.value
    return totals
