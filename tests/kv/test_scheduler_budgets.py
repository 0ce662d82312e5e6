"""Budgets that the scheduler cannot read: the engine goes on, says so, and evicts nothing."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from vllm_prune.budget.kv import KEY, KvSpec
from vllm_prune.kv.layer_groups import LayerGroups
from vllm_prune.kv.runners.base import CompactingRunner
from vllm_prune.kv.scheduler import CompactingMixin
from vllm_prune.kv.window_slots import WindowLimits, WindowSlots
from vllm_prune.telemetry import metrics


class Base:
    def add_request(self, request: Any) -> None:
        self.added.append(request)  # type: ignore[attr-defined]


class Scheduler(CompactingMixin, Base):
    def __init__(self) -> None:
        self.budgets, self.added, self.compacting = {}, [], object()  # type: ignore[assignment]
        self.tallies, self.unsent = {}, {}
        self.windows = WindowSlots(WindowLimits(64, 512, 64))
        self.groups = LayerGroups((0,), (28,), ((0,),))


def request(wire: object) -> Any:
    params = SimpleNamespace(extra_args={KEY: wire})
    return SimpleNamespace(
        request_id="r",
        sampling_params=params,
        resumable=False,
        prompt_token_ids=[1],
        num_prompt_tokens=100,
        mm_features=[],
    )


def skipped() -> float:
    labels = {"model_name": metrics._model_name, "reason": "malformed"}
    return REGISTRY.get_sample_value("vllm_prune_kv_eviction_skipped_total", labels) or 0.0


@pytest.mark.parametrize("wire", ["{", "[]", 5, ["x"], '{"strategy": "snapkv"}', "[" * 100_000])
def test_the_engine_goes_on_without_eviction(wire: object, caplog: pytest.LogCaptureFixture) -> None:
    scheduler, before = Scheduler(), skipped()
    logging.getLogger("vllm.vllm_prune").addHandler(caplog.handler)
    try:
        scheduler.add_request(request(wire))
    finally:
        logging.getLogger("vllm.vllm_prune").removeHandler(caplog.handler)
    assert len(scheduler.added) == 1
    assert scheduler.budgets == {}
    assert skipped() == before + 1
    assert "request r is not evicted" in caplog.text


@pytest.mark.parametrize(
    ("name", "options", "configured"),
    [("expected_attention", '{"queries": "prompt"}', {"sums": 1}), ("dyvte", "{}", {"gates": True})],
)
def test_what_nothing_was_configured_for_is_skipped(name: str, options: str, configured: dict[str, Any]) -> None:
    """The front end refuses these; under plain vLLM they come through."""
    scheduler, spec = Scheduler(), KvSpec(name, options, keep="0.5")
    scheduler.add_request(request(spec.wire()))
    assert scheduler.budgets == {}
    scheduler.windows = WindowSlots(WindowLimits(64, 512, 64, **configured))
    scheduler.add_request(request(spec.wire()))
    assert set(scheduler.budgets) == {"r"}


def test_a_good_budget_is_taken() -> None:
    scheduler, before, spec = Scheduler(), skipped(), KvSpec("snapkv", keep="0.5")
    scheduler.add_request(request(spec.wire()))
    kept = scheduler.budgets["r"].spec
    assert (kept.strategy, kept.keep) == (spec.strategy, spec.keep)
    assert skipped() == before


def test_the_runner_agrees_with_the_scheduler() -> None:
    runner: Any = CompactingRunner.__new__(CompactingRunner)
    runner.kv_requests, runner.kv_compactor = {}, object()
    state = SimpleNamespace(sampling_params=SimpleNamespace(extra_args={KEY: "{"}), prompt_token_ids=[1])
    runner._track("r", state)
    assert runner.kv_requests == {}
