"""Medians over rounds, and medians of the per-round ratios to stock."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .arms import STOCK
from .rounds import Measured, Round

PERCENTILES = (50, 95, 99)


def summarise(measured: Measured, target: float | None = None) -> dict[str, Any]:
    """One load as JSON.

    Args:
        measured: with stock among the arms; without a whole round there are no rows.
        target: seconds to the first token that goodput counts; by default stock's median at this load.
    """
    load, rounds = measured.load, measured.rounds
    about = {
        "workload": load.workload.name,
        "visual_tokens": load.workload.visual_tokens,
        "answer_tokens": load.workload.tokens,
        "concurrency": load.concurrency,
        "requests": load.requests,
        "prepared": load.prepared,
        "rounds": len(rounds.get(STOCK, ())),
        "rounds_wanted": measured.wanted,
        "errors": measured.errors,
        "first_round": {name: one.requests_per_second for name, one in measured.first.items()},
    }
    if STOCK not in rounds:
        return about | {"ttft_target_ms": None, "rows": []}
    if target is None:
        target = statistics.median(value for one in rounds[STOCK] for value in one.ttft)
    rows = [row(name, found, rounds[STOCK], target) for name, found in rounds.items()]
    return about | {"ttft_target_ms": 1000 * target, "rows": rows}


def row(name: str, rounds: Sequence[Round], stock: Sequence[Round], target: float) -> dict[str, Any]:
    """One arm."""
    result: dict[str, Any] = {
        "arm": name,
        "requests_per_second": statistics.median(one.requests_per_second for one in rounds),
        "goodput": statistics.median(sum(value <= target for value in one.ttft) / one.seconds for one in rounds),
        **percentiles("ttft", [value for one in rounds for value in one.ttft]),
        **percentiles("itl", [gap for one in rounds for gap in one.gaps]),
        "prompt_tokens": rounds[0].usage("prompt_tokens"),
        "kept_visual_tokens": rounds[0].usage("pruning", "visual", "kept_tokens"),
        "evicted_rows": rounds[0].usage("pruning", "kv", "evicted_tokens"),
        "kv_peak": max(one.peaks.kv_usage for one in rounds),
        "running_peak": max(one.peaks.running for one in rounds),
        "preemptions": sum(one.peaks.preemptions for one in rounds),
        "scoring_share": share(rounds, lambda one: one.spent.scoring),
        "compaction_share": share(rounds, lambda one: one.spent.compaction),
        "processor_seconds_per_request": share(rounds, lambda one: one.spent.processor, per_request=True),
        "requests_per_second_of_rounds": [one.requests_per_second for one in rounds],
    }
    pairs = list(zip(stock, rounds, strict=True))
    throughput = [ours.requests_per_second / other.requests_per_second for other, ours in pairs]
    return result | {
        "throughput_ratio": statistics.median(throughput),
        "throughput_lowest": min(throughput),
        "throughput_highest": max(throughput),
        "ttft_ratio": statistics.median(median_ttft(other) / median_ttft(ours) for other, ours in pairs),
    }


def median_ttft(one: Round) -> float:
    """Seconds."""
    return statistics.median(one.ttft)


def percentiles(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99 in milliseconds; None where there is nothing, as for answers of one token."""
    return {f"{name}_p{p}_ms": 1000 * float(np.percentile(seconds, p)) if seconds else None for p in PERCENTILES}


def share(rounds: Sequence[Round], of: Callable[[Round], float], per_request: bool = False) -> float:
    """Median over rounds of a time as a share of the round's, or per request."""
    return statistics.median(of(one) / (len(one.answers) if per_request else one.seconds) for one in rounds)
