"""Series that start at zero: a rate misses the first event of a counter that appears with it."""

from __future__ import annotations

from collections.abc import Iterable

from . import metrics
from .catalogue import entries
from .kv.support import REFUSED

BUDGET_REJECTIONS = ("invalid_budget", "not_active")
SKIPPED = (*REFUSED, "pool_full")
CLAMPED = ("min_keep", "max_keep", "min_tokens", "max_tokens")


def publish(rejections: Iterable[str], media: Iterable[str]) -> None:
    """Create the counters of this process and the series of every label that they are known to take.

    Args:
        rejections: reasons of the server's own refusals.
        media: reasons for which media are refused.
    """
    metrics.inflight(0)
    metrics.set_waiting(0)
    for entry in entries():
        if entry["part"] == "kv":
            metrics.count_compaction(entry["name"], 0, 0, times=0)
        else:
            for modality in entry["modality"]:
                metrics.count_visual(modality, entry["name"], 0, 0)
    for reason in (*BUDGET_REJECTIONS, *rejections):
        metrics.count_rejection(reason, times=0)
    for reason in media:
        metrics.count_media_rejected(reason, times=0)
    for reason in SKIPPED:
        metrics.count_kv_skipped(reason, times=0)
    for reason in CLAMPED:
        metrics.count_clamped(reason, times=0)
