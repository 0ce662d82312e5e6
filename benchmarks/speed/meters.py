"""What a server spent while it was measured: processor time, and our own steps."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
import psutil

from vllm_prune.bench.watch import sums

from ..servers import Server

SCORING, COMPACTION = "vllm_prune_score_seconds_sum", "vllm_prune_compaction_seconds_sum"


@dataclass(frozen=True)
class Spent:
    """Totals since the server started, in seconds.

    Attributes:
        processor: user and system time of the server and all its processes.
        scoring: choosing tokens.
        compaction: of KV caches.
    """

    processor: float
    scoring: float
    compaction: float

    def __sub__(self, earlier: Spent) -> Spent:
        return Spent(
            self.processor - earlier.processor,
            self.scoring - earlier.scoring,
            self.compaction - earlier.compaction,
        )


def processor_seconds(server: Server) -> float:
    """User and system time of a server and all its processes."""
    assert server.process is not None
    root = psutil.Process(server.process.pid)
    return sum(sum(one.cpu_times()[:2]) for one in [root, *root.children(recursive=True)])


def spent(server: Server) -> Spent:
    """Read all totals; those that a server does not have are 0."""
    text = httpx.get(f"{server.url}/metrics", timeout=60, trust_env=False).text
    totals = sums(text, (SCORING, COMPACTION))
    return Spent(processor_seconds(server), totals[SCORING], totals[COMPACTION])
