"""Reports leave the outputs before anybody else sees them, and metrics count what usage can say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_prune.budget.kv import REPORT, KvSpec
from vllm_prune.kv.tally import Tally, attach
from vllm_prune.policy import Decision
from vllm_prune.request import RequestContext
from vllm_prune.telemetry import metrics
from vllm_prune.vllm_compat.output_processor import _take_report


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(metrics, "count_compaction", lambda *args: calls.append(args))
    return calls


def output(tally: Tally) -> Any:
    made = SimpleNamespace(request_id="cmpl-a-0", kv_transfer_params=None)
    attach([SimpleNamespace(request_id="other"), made], {"cmpl-a-0": tally})
    assert made.kv_transfer_params is not None
    return made


def test_each_report_counts_what_is_new(counted: list[tuple[Any, ...]]) -> None:
    context = RequestContext(decision=Decision(None, kv=KvSpec("snapkv", keep="0.5")))
    state, tally = SimpleNamespace(), Tally(context.id, "snapkv", 100, 50)
    for evicted, freed in ((0, 0), (50, 3), (10, 1), (10, 0)):
        if evicted:
            tally.add(evicted, [freed])
        report = output(tally)
        _take_report(report, state)
        assert report.kv_transfer_params is None
    assert counted == [("snapkv", 50, 3, 1), ("snapkv", 10, 1, 1), ("snapkv", 10, 0, 1)]
    assert context.usage()["kv"] == {
        "strategy": "snapkv",
        "prompt_tokens": 100,
        "kept_tokens": 50,
        "evicted_tokens": 70,
        "freed_blocks": 4,
        "compactions": 3,
    }


def test_groups_of_layers_count_their_blocks(counted: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[tuple[int, int]] = []
    monkeypatch.setattr(metrics, "count_group_blocks", lambda *args: blocks.append(args))
    context = RequestContext(decision=Decision(None, kv=KvSpec("pyramid_kv", keep="0.5")))
    groups = [{"first_layer": first, "kept_tokens": kept, "freed_blocks": 0} for first, kept in ((0, 70), (14, 30))]
    state, tally = SimpleNamespace(), Tally(context.id, "pyramid_kv", 100, 50, layer_groups=groups)
    for evicted, freed in ((0, [0, 0]), (50, [1, 3]), (10, [1, 0])):
        if evicted:
            tally.add(evicted, freed)
        _take_report(output(tally), state)
    assert counted == [("pyramid_kv", 50, 4, 1), ("pyramid_kv", 10, 1, 1)]
    assert blocks == [(0, 1), (14, 3), (0, 1), (14, 0)]
    assert context.usage()["kv"]["layer_groups"] == [
        {"first_layer": 0, "kept_tokens": 70, "freed_blocks": 2},
        {"first_layer": 14, "kept_tokens": 30, "freed_blocks": 3},
    ]


def test_what_comes_after_the_front_end_has_ended_a_request_counts_nowhere(counted: list[tuple[Any, ...]]) -> None:
    context = RequestContext(decision=Decision(None, kv=KvSpec("snapkv", keep="0.5")))
    state, tally = SimpleNamespace(), Tally(context.id, "snapkv", 100, 50)
    tally.add(50, [3])
    _take_report(output(tally), state)
    usage = context.usage()
    tally.add(9, [1])
    late = output(tally)
    _take_report(late, None)
    assert late.kv_transfer_params is None
    assert context.usage() == usage
    assert counted == [("snapkv", 50, 3, 1)]


def test_parameters_of_others_stay(counted: list[tuple[Any, ...]]) -> None:
    theirs = SimpleNamespace(request_id="a", kv_transfer_params={"remote": 1})
    _take_report(theirs, SimpleNamespace())
    assert theirs.kv_transfer_params == {"remote": 1}
    both = SimpleNamespace(request_id="a", kv_transfer_params={"remote": 1})
    attach([both], {"a": Tally("", "snapkv", 10, 5)})
    assert REPORT in both.kv_transfer_params
    _take_report(both, SimpleNamespace())
    assert both.kv_transfer_params == {"remote": 1}
    assert counted == []


def test_only_outputs_take_tallies_away() -> None:
    waiting = {"a": Tally("", "snapkv", 10, 5), "b": Tally("", "snapkv", 10, 5)}
    attach([SimpleNamespace(request_id="a", kv_transfer_params=None)], waiting)
    assert set(waiting) == {"b"}
