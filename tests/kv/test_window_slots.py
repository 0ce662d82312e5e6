"""Slots of the query store: bounded, in turn, and all of them back in the end."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_prune.budget.kv import KvSpec
from vllm_prune.catalogue import KV
from vllm_prune.config.worker_facts import MAX_WINDOW
from vllm_prune.kv.query_window import QueryStore, StepPlan
from vllm_prune.kv.window_slots import WindowLimits, WindowSlots

from .strategies.views import view


class CountedWork(TorchDispatchMode):
    """Elements of all results of operations inside."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            self.elements += tensor.numel() if isinstance(tensor, torch.Tensor) else 0
        return result


LONG = KvSpec("snapkv", keep="0.5", window=MAX_WINDOW)


def engine(sequences: int, additional: Any = None) -> Any:
    return SimpleNamespace(additional_config=additional, scheduler_config=SimpleNamespace(max_num_seqs=sequences))


def test_the_store_holds_a_default_window_for_each_sequence_or_one_longest() -> None:
    assert WindowLimits.of(engine(256)) == WindowLimits(64, 2048, 256)
    assert WindowLimits.of(engine(2)) == WindowLimits(64, 64, 2)
    assert WindowLimits.of(engine(2, {"vllm_prune": {"max_window": 300}})) == WindowLimits(300, 300, 2)
    assert WindowLimits.of(engine(2, SimpleNamespace())) == WindowLimits(64, 64, 2)
    assert WindowLimits.of(engine(256, {"vllm_prune": {"observed_requests": 16}})) == WindowLimits(64, 128, 16)
    assert WindowLimits.of(engine(4, {"vllm_prune": {"observed_requests": 16}})) == WindowLimits(64, 64, 4)


def test_one_sum_after_the_other() -> None:
    """A request whose prompt's queries are summed up waits for a slot, as those behind it do, and holds no window."""
    paper = KvSpec("expected_attention", '{"queries": "prompt"}', keep="0.5")
    slots = WindowSlots(WindowLimits.of(engine(8, {"vllm_prune": {"prompt_queries": 1}})))
    for name in ("a", "b"):
        slots.register(name, paper, 100)
    slots.register("c", KvSpec("snapkv", keep="0.5"), 100)
    slots.begin_step()
    assert [slots.acquire(name) for name in ("a", "a", "b", "c")] == [True, True, False, False]
    assert slots.held == {}
    slots.begin_step()
    assert slots.acquire("c")
    slots.release("a")
    slots.begin_step()
    assert slots.acquire("b")
    slots.release("b")
    slots.release("c")
    assert (slots.summing, slots.held, slots.free) == ({}, {}, 64)


def test_gates_are_configured_by_their_weights_and_come_with_a_window() -> None:
    """There are as many sums for gates as windows, so only those are counted; the prefix cache gives nothing."""
    limits, gated = WindowLimits.of(engine(8, {"vllm_prune": {"weights": {"dyvte": "x"}}})), KvSpec("dyvte", keep="0.5")
    assert limits == WindowLimits(64, 64, 8, gates=True)
    assert limits.slots_of(gated, 100) == 8
    paper = KvSpec("expected_attention", '{"queries": "prompt"}', keep="0.5")
    others = WindowLimits.of(engine(8, {"vllm_prune": {"weights": {"qtsplus": "x"}, "prompt_queries": 1}}))
    snapkv = KvSpec("snapkv", keep="0.5")
    assert [limits.lacks(spec) for spec in (gated, paper, snapkv)] == [False, True, False]
    assert [others.lacks(spec) for spec in (gated, paper, snapkv)] == [True, False, False]
    slots = WindowSlots(limits)
    for name, spec in (("a", gated), ("b", paper), ("c", snapkv)):
        slots.register(name, spec, 100)
    assert (slots.whole, [*slots.summing]) == ({"a", "b"}, ["b"])
    for name in "abc":
        slots.release(name)
    assert slots.whole == set()


def test_only_strategies_that_look_at_queries_hold_slots() -> None:
    limits = WindowLimits.of(engine(8))
    assert limits.slots_of(KvSpec("snapkv", keep="0.5"), 100) == 8
    assert limits.slots_of(KvSpec("snapkv", keep="0.5", window=1024), 1000) == 64
    assert limits.slots_of(KvSpec("snapkv", max_tokens=5, window=64), 1000) == 3
    assert limits.slots_of(KvSpec("keydiff", keep="0.5", window=64), 1000) == 0
    assert limits.bounded(KvSpec("keydiff", keep="0.5", window=1024), 1000).window == 64


def test_quadratic_scoring_waits_for_a_share_of_the_budget() -> None:
    limits = WindowLimits.of(engine(8))
    for spec, prompt, buffer in (
        (KvSpec("r_kv", keep="0.5", buffer=16), 2000, 16),
        (KvSpec("r_kv", keep="0.5", buffer=16), 32768, 256),
        (KvSpec("r_kv", max_tokens=32768), 40000, 512),
        (KvSpec("r_kv", max_tokens=6400), 40000, 128),
        (KvSpec("snapkv", keep="0.5", buffer=16), 32768, 16),
    ):
        assert limits.bounded(spec, prompt).buffer == buffer
        assert limits.clamped(spec, prompt) == []
        named = replace(spec, buffer_named=True)
        entry = {"param": "pruning.kv.buffer", "requested": spec.buffer, "applied": buffer, "reason": "quadratic"}
        assert limits.clamped(named, prompt) == ([] if buffer == spec.buffer else [entry])


@pytest.mark.slow
@pytest.mark.parametrize("name", KV.names())
def test_only_strategies_that_say_so_are_quadratic(name: str) -> None:
    """Elements that the operations of a scoring touch, at four times the rows."""

    def work(rows: int) -> int:
        with CountedWork() as counted:
            KV.create(name).score(view(1, 1, rows, 4, 4))
        return counted.elements

    growth = work(8192) / work(2048)
    assert (growth > 8) == KV.strategy_class(name).quadratic


def test_a_long_window_is_not_starved_by_short_ones() -> None:
    slots = WindowSlots(WindowLimits(64, 64, 8))
    for name, spec in (("a", KvSpec("snapkv", keep="0.5")), ("long", LONG), ("b", KvSpec("snapkv", keep="0.5"))):
        slots.register(name, spec, 1000)
    slots.register("none", KvSpec("keydiff", keep="0.5"), 1000)
    slots.begin_step()
    assert [slots.acquire(name) for name in ("a", "long", "b", "none", "unknown")] == [True, False, False, True, True]
    slots.begin_step()
    assert [slots.acquire(name) for name in ("a", "long", "b")] == [True, False, False]
    slots.release("a")
    slots.begin_step()
    assert [slots.acquire(name) for name in ("long", "b")] == [True, False]
    slots.release("long")
    slots.begin_step()
    assert slots.acquire("b")
    slots.release("b")
    slots.release("none")
    assert (slots.free, slots.held, slots.needed) == (64, {}, {})


def test_no_more_requests_are_observed_than_configured() -> None:
    """Slots are left, as the store holds one longest window at least."""
    slots = WindowSlots(WindowLimits(64, 64, 2))
    for name in "abc":
        slots.register(name, KvSpec("snapkv", keep="0.5"), 1000)
    slots.register("none", KvSpec("keydiff", keep="0.5"), 1000)
    slots.begin_step()
    assert [slots.acquire(name) for name in ("a", "b", "c", "none", "a")] == [True, True, False, True, True]
    slots.release("a")
    slots.begin_step()
    assert slots.acquire("c")


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 200), st.booleans()), max_size=60))
def test_what_the_scheduler_admits_fits_into_the_store(steps: list[tuple[int, int, bool]]) -> None:
    limits = WindowLimits.of(engine(4))
    slots, store = WindowSlots(limits), QueryStore([], limits.slots, 8, torch.device("cpu"))
    acquired: dict[str, list[int]] = {}
    for number, window, ends in steps:
        name = str(number)
        if ends:
            slots.release(name)
            store.release(acquired.pop(name, []))
        elif name not in slots.needed:
            slots.begin_step()
            slots.register(name, KvSpec("snapkv", keep="0.5", window=window), 1000)
            if slots.acquire(name):
                acquired[name] = store.acquire(slots.held[name])
        taken = [slot for some in acquired.values() for slot in some]
        assert len(set(taken)) == len(taken) == limits.slots - slots.free
        assert store.capacity == limits.slots


def test_the_store_never_grows() -> None:
    layer = SimpleNamespace(
        num_heads=2, head_size=4, dtype=torch.float32, impl=SimpleNamespace(forward=lambda layer, query: query.sum())
    )
    store = QueryStore([layer], 6, 8, torch.device("cpu"))
    memory = store.rows[0].data_ptr()
    first, second = store.acquire(4), store.acquire(2)
    with pytest.raises(RuntimeError, match="a window of 1 queries does not fit: 0 of 6 are free"):
        store.acquire(1)
    query = torch.arange(40.0).view(5, 2, 4)
    store.arm(StepPlan([4, 0], [second[1], first[0]]))
    assert layer.impl.forward(layer, query) == query.sum()
    store.arm(StepPlan())
    layer.impl.forward(layer, query * 7)
    assert torch.equal(store.queries(0, torch.tensor([first[0], second[1]])), query[[0, 4]])
    store.release(first)
    store.release(second)
    assert sorted(store.free) == list(range(6))
    assert store.rows[0].data_ptr() == memory
    assert store.rows[0].shape == (7, 2, 4)
