"""Threads that serve tenants in turn and, within a tenant, requests in turn.

With one first-in-first-out queue, a request that carries a hundred pictures delays everybody else by a hundred
decodings. Here the tenant that has been served least recently comes next, so that the first task of a tenant is
delayed by those that run and by none that wait; requests of one tenant take turns.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple


class ShareKey(NamedTuple):
    """The tenant and the request that a task counts for in the order of service.

    Attributes:
        tenant: name of the tenant, empty on servers without tenants.
        request: id of the request.
    """

    tenant: str = ""
    request: str = ""


class QueueFull(RuntimeError):
    """The tenant's queue has reached its limit of waiting tasks."""


@dataclass(eq=False)
class Task:
    """A call that waits for a thread."""

    key: ShareKey
    future: Future[Any]
    call: Callable[[], Any]


class FairQueue:
    """Waiting tasks in the order in which they are served; not safe for use by several threads.

    Args:
        most: tasks of one tenant that may wait.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._tenants: dict[str, OrderedDict[str, deque[Task]]] = {}
        self._waiting: dict[str, int] = {}
        # Kept for tenants with nothing in the queue: who comes back at once must not come before the others again.
        self._last_turn: dict[str, int] = {}
        self._turns = 0

    def __len__(self) -> int:
        return sum(self._waiting.values())

    def put(self, task: Task) -> None:
        """Add a task.

        Raises:
            QueueFull: too many tasks of its tenant wait.
        """
        tenant, request = task.key
        if self._waiting.get(tenant, 0) >= self.most:
            raise QueueFull
        self._tenants.setdefault(tenant, OrderedDict()).setdefault(request, deque()).append(task)
        self._waiting[tenant] = self._waiting.get(tenant, 0) + 1

    def take(self, skip: Callable[[str], bool] = lambda tenant: False) -> Task | None:
        """The next task in turn; None when all that wait are of tenants to skip."""
        tenants = [tenant for tenant in self._tenants if not skip(tenant)]
        if not tenants:
            return None
        tenant = min(tenants, key=lambda name: self._last_turn.get(name, -1))
        self._last_turn[tenant] = self._turns
        self._turns += 1
        requests = self._tenants[tenant]
        request, tasks = next(iter(requests.items()))
        task = tasks.popleft()
        requests.move_to_end(request)
        self._forget(task)
        return task

    def remove(self, task: Task) -> None:
        """Drop a task that nobody waits for any more; does nothing when it is not in the queue."""
        requests = self._tenants.get(task.key.tenant)
        tasks = requests.get(task.key.request) if requests is not None else None
        if tasks is not None and task in tasks:
            tasks.remove(task)
            self._forget(task)

    def _forget(self, task: Task) -> None:
        """Count a task off, and drop what it leaves empty."""
        tenant, request = task.key
        requests = self._tenants[tenant]
        if not requests[request]:
            del requests[request]
        if not requests:
            del self._tenants[tenant]
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]


class FairExecutor:
    """A fixed number of threads behind a `FairQueue`.

    Args:
        threads: their number; they start with the first tasks.
        name: prefix of their names.
        most_waiting: tasks of one tenant that may wait.
        most_running: tasks of one tenant that may run at once, for calls that cannot be stopped; None: any number.
    """

    def __init__(self, threads: int, name: str, most_waiting: int, most_running: int | None = None) -> None:
        self.threads, self.name = threads, name
        self._most_running = most_running or threads
        self._queue = FairQueue(most_waiting)
        self._changed = threading.Condition()
        self._running: dict[str, int] = {}
        self._started = self._idle = 0
        self._closed = False

    def submit(self, key: ShareKey, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call a function in a thread when it is the turn of `key`; a future that is cancelled leaves the queue.

        Raises:
            QueueFull: too many tasks of this tenant wait.
            RuntimeError: the executor is closed.
        """
        task = Task(key, Future(), lambda: function(*arguments))
        with self._changed:
            if self._closed:
                raise RuntimeError("the executor is closed")
            self._queue.put(task)
            if len(self._queue) > self._idle and self._started < self.threads:
                self._started += 1
                # Daemons, as the interpreter would wait at its exit for a name server that never answers.
                threading.Thread(target=self._work, name=f"{self.name}-{self._started}", daemon=True).start()
            self._changed.notify()
        task.future.add_done_callback(lambda future: self._drop(task) if future.cancelled() else None)
        return task.future

    def waiting(self) -> int:
        """Tasks that wait for a thread."""
        with self._changed:
            return len(self._queue)

    def close(self) -> None:
        """Cancel all that waits; what runs ends by itself."""
        with self._changed:
            self._closed = True
            rest = []
            while (task := self._queue.take()) is not None:
                rest.append(task)
            self._changed.notify_all()
        for task in rest:
            task.future.cancel()

    def _drop(self, task: Task) -> None:
        with self._changed:
            self._queue.remove(task)

    def _work(self) -> None:
        while (task := self._next()) is not None:
            try:
                if task.future.set_running_or_notify_cancel():
                    _run(task)
            finally:
                self._finish(task.key.tenant)
            # Nothing of the last request is kept alive while this thread waits for the next one.
            del task

    def _next(self) -> Task | None:
        with self._changed:
            while True:
                task = self._queue.take(lambda tenant: self._running.get(tenant, 0) >= self._most_running)
                if task is not None:
                    self._running[task.key.tenant] = self._running.get(task.key.tenant, 0) + 1
                    return task
                if self._closed:
                    return None
                self._idle += 1
                self._changed.wait()
                self._idle -= 1

    def _finish(self, tenant: str) -> None:
        with self._changed:
            self._running[tenant] -= 1
            if not self._running[tenant]:
                del self._running[tenant]
            self._changed.notify()


def _run(task: Task) -> None:
    try:
        result = task.call()
    except BaseException as error:
        task.future.set_exception(error)
    else:
        task.future.set_result(result)
