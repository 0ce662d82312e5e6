"""Turns of tenants and requests: the order is fixed, so every test states it exactly."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune_server.media.fair_executor import FairExecutor, FairQueue, QueueFull, ShareKey, Task


def task(tenant: str, request: str, name: str = "") -> Task:
    return Task(ShareKey(tenant, request), Future(), lambda: name)


def served(queue: FairQueue) -> list[str]:
    names = []
    while (next_task := queue.take()) is not None:
        names.append(next_task.call())
    return names


def test_tenants_then_requests_take_turns() -> None:
    queue = FairQueue(100)
    for name in ("a1", "a2", "a3"):
        queue.put(task("A", "first", name))
    queue.put(task("A", "second", "a4"))
    queue.put(task("B", "third", "b1"))
    queue.put(task("B", "third", "b2"))
    assert served(queue) == ["a1", "b1", "a4", "b2", "a2", "a3"]
    assert len(queue) == 0
    assert not queue._tenants
    assert not queue._waiting


def test_a_late_tenant_comes_before_all_that_wait_of_another() -> None:
    queue = FairQueue(100)
    for i in range(100):
        queue.put(task("A", f"request {i % 3}", f"a{i}"))
    running = queue.take()
    assert running is not None
    queue.put(task("C", "only", "c"))
    queue.put(task("B", "only", "b"))
    assert served(queue)[:3] == ["c", "b", "a1"]


def test_a_tenant_that_comes_back_at_once_waits_for_the_others() -> None:
    queue = FairQueue(100)
    queue.put(task("A", "1", "a1"))
    queue.put(task("A", "1", "a2"))
    order = []
    for i in range(4):
        queue.put(task("B", f"{i}", f"b{i}"))
        next_task = queue.take()
        assert next_task is not None
        order.append(next_task.call())
    assert order == ["a1", "b0", "a2", "b1"]


def test_without_tenants_requests_take_turns() -> None:
    queue = FairQueue(100)
    for i in range(50):
        queue.put(task("", "large", f"large {i}"))
    queue.put(task("", "small", "small"))
    assert served(queue)[:2] == ["large 0", "small"]


def test_the_bound_is_a_tenants() -> None:
    queue = FairQueue(2)
    queue.put(task("A", "1", "a1"))
    queue.put(task("A", "2", "a2"))
    with pytest.raises(QueueFull):
        queue.put(task("A", "3"))
    queue.put(task("B", "1", "b1"))
    assert queue.take() is not None
    queue.put(task("A", "3", "a3"))
    assert served(queue) == ["b1", "a2", "a3"]


def test_removed_tasks_leave_nothing_behind() -> None:
    queue = FairQueue(10)
    first, second, other = task("A", "1", "a1"), task("A", "1", "a2"), task("B", "1", "b1")
    for one in (first, second, other):
        queue.put(one)
    queue.remove(first)
    queue.remove(first)
    assert served(queue) == ["a2", "b1"]
    queue.remove(second)
    assert len(queue) == 0
    assert not queue._tenants


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from("xyz")), max_size=60))
def test_everything_is_served_once_and_nobody_twice_before_another(keys: list[tuple[str, str]]) -> None:
    queue = FairQueue(100)
    tasks = [task(*key) for key in keys]
    for one in tasks:
        queue.put(one)
    order: list[Task] = []
    while (next_task := queue.take()) is not None:
        order.append(next_task)
    assert sorted(map(id, order)) == sorted(map(id, tasks))
    for i, one in enumerate(order):
        still_waiting = {later.key.tenant for later in order[i:]} - {one.key.tenant}
        following = [later.key.tenant for later in order[i + 1 : i + 1 + len(still_waiting)]]
        assert set(following) == still_waiting


class Held:
    """Calls that wait until they are released, and note that they ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.started, self.release = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, name: str) -> str:
        self.ran.append(name)
        self.started.release()
        assert self.release.acquire(timeout=20)
        return name


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def single() -> Iterator[FairExecutor]:
    executor = FairExecutor(1, "test", 200)
    yield executor
    executor.close()


def test_a_hundred_tasks_of_one_tenant_delay_another_by_the_one_that_runs(single: FairExecutor, held: Held) -> None:
    key = ShareKey("A", "big")
    futures = [single.submit(key, held, f"a{i}") for i in range(100)]
    assert held.started.acquire(timeout=20)
    futures.append(single.submit(ShareKey("B", "small"), held, "b"))
    held.release.release()
    assert held.started.acquire(timeout=20)
    held.release.release()
    assert held.ran == ["a0", "b"]
    for _ in range(100):
        held.release.release()
    assert [future.result(20) for future in futures] == [f"a{i}" for i in range(100)] + ["b"]


def test_cancelled_tasks_leave_the_queue(single: FairExecutor, held: Held) -> None:
    first = single.submit(ShareKey("A", "1"), held, "first")
    assert held.started.acquire(timeout=20)
    waiting = [single.submit(ShareKey("A", "2"), held, f"{i}") for i in range(5)]
    assert single.waiting() == 5
    assert all(future.cancel() for future in waiting)
    assert single.waiting() == 0
    last = single.submit(ShareKey("A", "3"), held, "last")
    held.release.release()
    held.release.release()
    assert (first.result(20), last.result(20)) == ("first", "last")
    assert held.ran == ["first", "last"]


def test_a_full_queue_refuses_and_recovers(held: Held) -> None:
    executor = FairExecutor(1, "test", 1)
    running = executor.submit(ShareKey("A", "1"), held, "running")
    assert held.started.acquire(timeout=20)
    waiting = executor.submit(ShareKey("A", "1"), held, "waiting")
    with pytest.raises(QueueFull):
        executor.submit(ShareKey("A", "2"), held, "too many")
    other = executor.submit(ShareKey("B", "1"), held, "other tenant")
    for _ in range(3):
        held.release.release()
    assert [future.result(20) for future in (running, waiting, other)] == ["running", "waiting", "other tenant"]
    executor.close()


def test_calls_that_never_return_leave_threads_to_others(held: Held) -> None:
    executor = FairExecutor(4, "test", 100, most_running=2)
    stuck = [executor.submit(ShareKey("A", f"{i}"), held, f"a{i}") for i in range(10)]
    assert held.started.acquire(timeout=20)
    assert held.started.acquire(timeout=20)
    assert executor.submit(ShareKey("B", "1"), lambda: "b").result(20) == "b"
    assert held.ran == ["a0", "a1"]
    for _ in range(10):
        held.release.release()
    assert [future.result(20) for future in stuck] == [f"a{i}" for i in range(10)]
    executor.close()


def test_errors_reach_the_caller_and_the_thread_goes_on(single: FairExecutor) -> None:
    def fail() -> None:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        single.submit(ShareKey(), fail).result(20)
    assert single.submit(ShareKey(), lambda: 7).result(20) == 7


def test_closing_cancels_what_waits(held: Held) -> None:
    executor = FairExecutor(1, "test", 10)
    running = executor.submit(ShareKey(), held, "running")
    assert held.started.acquire(timeout=20)
    waiting = executor.submit(ShareKey(), held, "waiting")
    executor.close()
    with pytest.raises(CancelledError):
        waiting.result(20)
    held.release.release()
    assert running.result(20) == "running"
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(ShareKey(), held, "late")
