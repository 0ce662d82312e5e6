"""One load test: send, watch, and sum up per class of budget."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from .mix import Budget, assign
from .vllm_adapter import BenchError, Outcome, run
from .watch import Peaks, Watch

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        url: of the server, without `/v1`.
        model: name to send.
        chats: messages per request.
        mix: budgets to share them out to.
        tokens: to generate per request.
        rate: requests per second, infinite for all at once.
        concurrency: most requests in flight.
        seed: of the assignment and the arrivals.
    """

    url: str
    model: str
    chats: Sequence[list[dict[str, Any]]]
    mix: Sequence[Budget]
    tokens: int
    rate: float
    concurrency: int | None
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """What came out.

    Attributes:
        seconds: from the first request to the last answer.
        classes: one row per budget and one for all: counts, milliseconds, tokens.
        peaks: of the server while it ran.
        errors: up to five different messages of failed requests.
    """

    seconds: float
    classes: list[dict[str, Any]]
    peaks: Peaks
    errors: list[str]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


async def measure(load: Load) -> Report:
    """Run the load test.

    Raises:
        BenchError: see `vllm_adapter.run`; or every request failed.
    """
    chosen = assign(load.mix, len(load.chats), load.seed)
    # vLLM draws the arrival times from numpy's global generator.
    np.random.seed(load.seed)
    overrides = [{"pruning": budget.pruning} for budget in chosen]
    key = os.environ.get("OPENAI_API_KEY")
    async with Watch(load.url, {"Authorization": f"Bearer {key}"} if key else {}) as watch:
        outcomes, seconds = await run(
            load.url, load.model, list(load.chats), overrides, load.tokens, load.rate, load.concurrency
        )
    errors = list(dict.fromkeys(one.error for one in outcomes if not one.ok))[:5]
    if not any(one.ok for one in outcomes):
        raise BenchError(f"all {len(outcomes)} requests failed: {errors[0]}")
    names = list(dict.fromkeys(budget.name for budget in load.mix))
    groups = {name: [o for o, b in zip(outcomes, chosen, strict=True) if b.name == name] for name in names}
    if len(groups) > 1:
        groups["all"] = outcomes
    return Report(seconds, [summary(name, group, seconds) for name, group in groups.items()], watch.peaks, errors)


def summary(name: str, outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """One class: counts, requests per second, percentiles in milliseconds, mean tokens per request."""
    good = [one for one in outcomes if one.ok]
    row: dict[str, Any] = {
        "class": name, "requests": len(outcomes), "failed": len(outcomes) - len(good),
        "requests_per_second": len(good) / seconds,
    }  # fmt: skip
    if not good:
        return row
    times = {
        "ttft": [one.ttft for one in good],
        "itl": [gap for one in good for gap in one.itl],
        "e2e": [one.latency for one in good],
    }
    for key, values in times.items():
        for p in PERCENTILES:
            row[f"{key}_p{p}_ms"] = 1000 * float(np.percentile(values, p)) if values else None
    visual, kv = [[one.pruning.get(part) or {} for one in good] for part in ("visual", "kv")]
    return row | {
        "output_tokens": fmean(one.output_tokens for one in good),
        "prompt_tokens": fmean(one.prompt_tokens for one in good),
        "visual_input_tokens": fmean(usage.get("input_tokens", 0) for usage in visual),
        "visual_kept_tokens": fmean(usage.get("kept_tokens", 0) for usage in visual),
        "kv_evicted_rows": fmean(usage.get("evicted_tokens", 0) for usage in kv),
        "kv_freed_blocks": fmean(usage.get("freed_blocks", 0) for usage in kv),
    }
