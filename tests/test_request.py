from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from prometheus_client import REGISTRY

from vllm_prune.budget.canonical import Part, VisualSpec
from vllm_prune.budget.kv import KvSpec
from vllm_prune.policy import Decision
from vllm_prune.request import (
    CURRENT,
    RequestContext,
    add_stage,
    context_of_engine_request,
    current,
    live,
    reject,
    stage,
    timed,
)
from vllm_prune.telemetry import metrics

TALLY = {"strategy": "gui_kv", "prompt_tokens": 100, "kept_tokens": 50, "evicted_tokens": 50, "freed_blocks": 3,
         "compactions": 1}  # fmt: skip
ITEM = {"modality": "image", "strategy": "uniform", "input_tokens": 100, "kept_tokens": 25, "capped": False}


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"vllm_prune_{name}", {"model_name": metrics._model_name, **labels}) or 0.0


def test_ids_are_unique_though_clients_repeat_theirs() -> None:
    first, second = RequestContext(request_id="same"), RequestContext(request_id="same")
    assert first.id != second.id
    assert live(first.id) is first
    assert live("another") is None


def test_a_context_that_has_ended_is_no_longer_known() -> None:
    context = RequestContext()
    context.add_engine_request("chatcmpl-ended")
    name = context.id
    del context
    gc.collect()
    assert live(name) is None
    assert context_of_engine_request("chatcmpl-ended") is None


def test_engine_requests_lead_to_their_request() -> None:
    context = RequestContext()
    for engine_request_id in ("cmpl-a-0", "cmpl-a-1"):
        context.add_engine_request(engine_request_id)
        assert context_of_engine_request(engine_request_id) is context
    assert context_of_engine_request("cmpl-b-0") is None


def test_two_requests_of_one_id_are_not_mixed_up() -> None:
    long, short = RequestContext(), RequestContext()
    long.add_engine_request("chatcmpl-twin")
    short.add_engine_request("chatcmpl-twin")
    assert context_of_engine_request("chatcmpl-twin") is None
    short.forget_engine_requests()
    assert context_of_engine_request("chatcmpl-twin") is long


def test_vllms_ids_differ_while_two_requests_have_the_same() -> None:
    first, second = RequestContext(request_id="twin"), RequestContext(request_id="twin")
    assert first.engine_id() == first.engine_id() == "twin"
    assert second.engine_id() == f"twin-{second.id[:8]}"
    first.ended = 1.0
    assert RequestContext(request_id="twin").engine_id() == "twin"
    assert RequestContext(request_id="other").engine_id() == "other"


def test_kv_reports_add_up_over_engine_requests_and_the_latest_of_each_counts() -> None:
    context = RequestContext(decision=Decision(None, kv=KvSpec("gui_kv", keep="0.5")))
    assert context.usage()["kv"] is None
    context.record_tally("one", {**TALLY, "evicted_tokens": 1})
    context.record_tally("one", TALLY)
    assert context.usage()["kv"] == TALLY
    second = {"prompt_tokens": 40, "kept_tokens": 20, "evicted_tokens": 20, "freed_blocks": 1}
    context.record_tally("two", {**TALLY, **second})
    assert context.usage()["kv"] == {**TALLY, "evicted_tokens": 70, "freed_blocks": 4, "compactions": 2}


def test_what_a_prompt_is_too_short_for_is_listed_and_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"param": "pruning.kv.max_tokens", "requested": 1, "applied": 3, "reason": "min_rows"}
    window = {"param": "pruning.kv.window", "requested": 9, "applied": 1, "reason": "window_over_budget"}
    limit = {"param": "pruning.kv.keep", "requested": 0.1, "applied": 0.2, "reason": "min_keep"}
    context = RequestContext(decision=Decision(None, (limit,), KvSpec("gui_kv", max_tokens=1)))
    assert context.usage()["clamped"] == [limit]
    counted: list[str] = []
    monkeypatch.setattr(metrics, "count_clamped", counted.append)
    context.record_tally("one", {**TALLY, "clamped": [rows]})
    context.record_tally("one", {**TALLY, "clamped": [rows]})
    context.record_tally("two", {**TALLY, "clamped": [rows, window]})
    assert context.usage()["clamped"] == [limit, rows, window]
    assert counted == ["min_rows", "window_over_budget"]


def test_usage_adds_up_over_items() -> None:
    context = RequestContext()
    context.record_items([])
    assert context.usage() == {"visual": None, "kv": None, "clamped": []}
    context.record_items([ITEM, {**ITEM, "modality": "video", "strategy": "mc_evs"}, {**ITEM, "strategy": "none"}])
    assert context.usage() == {
        "visual": {"strategy": "mc_evs+uniform", "input_tokens": 300, "kept_tokens": 75},
        "kv": None,
        "clamped": [],
    }


def test_what_the_operators_limits_change_is_counted_and_said() -> None:
    entry = {"param": "pruning.visual.keep", "requested": 0.1, "applied": 0.2, "reason": "min_keep"}
    before = [sample("budget_clamped_total", reason=reason) for reason in ("min_keep", "max_tokens")]
    context = RequestContext()
    context.decide(Decision(VisualSpec(image=Part("uniform", keep="0.2"), limit=25), (entry,)))
    context.record_items([{**ITEM, "capped": True}])
    capped = {"param": "pruning.visual", "requested": 100, "applied": 25, "reason": "max_tokens"}
    assert context.usage()["clamped"] == [entry, capped]
    after = [sample("budget_clamped_total", reason=reason) for reason in ("min_keep", "max_tokens")]
    assert after == [before[0] + 1, before[1] + 1]


def test_tokens_in_flight_are_counted_until_the_answer_has_ended() -> None:
    names = ("inflight_requests", "inflight_visual_tokens")
    before = [sample(name) for name in names]
    context = RequestContext()
    with context.exits:
        context.start_answer()
        context.record_items([ITEM])
        assert [sample(name) for name in names] == [before[0] + 1, before[1] + 25]
    assert [sample(name) for name in names] == before
    context.record_items([ITEM])
    assert [sample(name) for name in names] == before


def test_stages_and_refusals_belong_to_the_current_request() -> None:
    before = sample("rejections_total", reason="capacity")
    with stage("outside"):
        add_stage("outside", 1.0)
    reject("capacity")
    context = RequestContext()

    async def prepare() -> Any:
        add_stage("fetch", 0.5)
        return current()

    async def answer() -> Any:
        CURRENT.set(context)
        reject("capacity")
        with pytest.raises(KeyError), stage("failing"):
            raise KeyError
        return await timed("preprocess", prepare)()

    assert asyncio.run(answer()) is context
    assert [one.name for one in context.stages] == ["failing", "fetch", "preprocess"]
    assert context.stages[1].end - context.stages[1].start == pytest.approx(0.5)
    assert context.rejected == "capacity"
    assert sample("rejections_total", reason="capacity") == before + 2
    assert current() is None


def test_moments_are_on_the_clock() -> None:
    context = RequestContext(began=10.0, epoch=1000.0)
    assert context.nanoseconds(10.5) == 1_000_500_000_000
