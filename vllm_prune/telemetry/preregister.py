"""Series that start at zero: a rate misses the first event of a counter that appears with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import metrics

BUDGET_REJECTIONS = ("invalid_budget", "not_active")
GUARD_REJECTIONS = ("features", "internal_key", "media_uuid")
CLAMPED = (
    "min_keep",
    "max_keep",
    "min_tokens",
    "max_tokens",
    "max_window",
    "min_buffer",
    "min_rows",
    "text_kept",
    "window_over_budget",
    "quadratic",
)


def preregister_labels(
    strategies: Iterable[Mapping[str, Any]], rejections: Iterable[str], media: Iterable[str], skipped: Iterable[str]
) -> None:
    """Create the counters of this process and the series of every label that they are known to take.

    Args:
        strategies: entries of the catalogue.
        rejections: reasons of the server's own refusals.
        media: reasons for which media are refused.
        skipped: reasons for which a compaction that was due does not happen.
    """
    metrics.inflight(0)
    metrics.set_waiting(0)
    metrics.set_feature_cache_bytes(0)
    for result in ("hit", "miss"):
        metrics.count_feature_lookup(result, times=0)
    for entry in strategies:
        if entry["part"] == "kv":
            metrics.count_compaction(entry["name"], 0, 0, times=0)
        else:
            for modality in entry["modality"]:
                metrics.count_visual(modality, entry["name"], 0, 0)
    for reason in (*BUDGET_REJECTIONS, *GUARD_REJECTIONS, *rejections):
        metrics.count_rejection(reason, times=0)
    for reason in media:
        metrics.count_media_rejected(reason, times=0)
    for reason in skipped:
        metrics.count_kv_skipped(reason, times=0)
    for reason in CLAMPED:
        metrics.count_clamped(reason, times=0)
