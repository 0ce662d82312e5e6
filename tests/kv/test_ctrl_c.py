"""Who ignores Ctrl-C: the processes of a launched server that are drained. Lifecycle tests send it to a real one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from threading import Thread

import pytest

from vllm_prune.kv import ctrl_c


@pytest.fixture(autouse=True)
def vllms_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("launched", "handler"), [(True, signal.SIG_IGN), (False, signal.default_int_handler)])
def test_only_under_our_launcher(monkeypatch: pytest.MonkeyPatch, launched: bool, handler: object) -> None:
    monkeypatch.delenv(ctrl_c.LAUNCHED, raising=False)
    if launched:
        monkeypatch.setenv(ctrl_c.LAUNCHED, "1")
    ctrl_c.ignore_when_launched()
    assert signal.getsignal(signal.SIGINT) is handler


def test_other_threads_leave_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, Python would raise."""
    monkeypatch.setenv(ctrl_c.LAUNCHED, "1")
    thread = Thread(target=ctrl_c.ignore_when_launched)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
