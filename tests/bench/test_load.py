"""The sums of a class, from outcomes that are known."""

from __future__ import annotations

import json

import pytest

from vllm_prune.bench.load import summary
from vllm_prune.bench.pictures import screens
from vllm_prune.bench.vllm_adapter import Outcome, pruning_of

USAGE = {"visual": {"input_tokens": 100, "kept_tokens": 50}, "kv": {"evicted_tokens": 8, "freed_blocks": 2}}


def outcome(i: int, ok: bool = True) -> Outcome:
    return Outcome(ok, i / 100, i / 10, [0.01, 0.03], 3, 70, USAGE if ok else {}, "" if ok else "500 broken")


def test_percentiles_and_means_leave_failures_out() -> None:
    row = summary("0.5", [*(outcome(i) for i in range(1, 102)), outcome(9999, ok=False)], 10.0)
    assert (row["requests"], row["failed"], row["requests_per_second"]) == (102, 1, 10.1)
    assert [round(row[f"ttft_p{p}_ms"]) for p in (50, 95, 99)] == [510, 960, 1000]
    assert [round(row[f"e2e_p{p}_ms"]) for p in (50, 95, 99)] == [5100, 9600, 10000]
    assert row["itl_p50_ms"] == pytest.approx(20)
    assert (row["visual_input_tokens"], row["visual_kept_tokens"], row["prompt_tokens"]) == (100, 50, 70)
    assert (row["kv_evicted_rows"], row["kv_freed_blocks"], row["output_tokens"]) == (8, 2, 3)


def test_a_class_that_failed_altogether() -> None:
    row = summary("kv:0.2", [outcome(1, ok=False)], 2.0)
    assert row == {"class": "kv:0.2", "requests": 1, "failed": 1, "requests_per_second": 0}


def test_usage_is_read_from_the_end_of_a_stream() -> None:
    def event(body: object) -> bytes:
        return b"data: " + json.dumps(body).encode() + b"\n\n"

    last = event({"choices": [], "usage": {"prompt_tokens": 3, "pruning": USAGE}})
    assert pruning_of(b'ken": 1}\n\n' + event({"choices": [1], "usage": None}) + last + b"data: [DONE]\n\n") == USAGE
    assert pruning_of(event({"choices": [], "usage": {"prompt_tokens": 3}})) == {}
    assert pruning_of(b"") == {}


def test_screens_differ_and_follow_the_seed() -> None:
    first, again, other = (screens(224, 112, seed) for seed in (1, 1, 2))
    some = [next(first) for _ in range(3)]
    assert len(set(some)) == 3
    assert some == [next(again) for _ in range(3)]
    assert next(other) not in some
    assert some[0].startswith("data:image/png;base64,")
