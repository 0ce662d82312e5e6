"""Kept tokens are fetched from every engine that a front end sends requests to, and only when they are wanted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_prune.grid import Grid
from vllm_prune.policy import Decision
from vllm_prune.request import RequestContext
from vllm_prune.vllm_compat import worker_calls
from vllm_prune.vllm_compat.worker_calls import fetch_kept


def item(key: str, kept: int = 3, **more: Any) -> dict[str, Any]:
    entry = {"modality": "image", "strategy": "divprune", "input_tokens": 12, "kept_tokens": kept, "capped": False}
    return {**entry, "grid": Grid(1, 3, 4), "kept_key": key, "kept": None, **more}


def request(*items: dict[str, Any], return_kept: bool = True) -> RequestContext:
    context = RequestContext(decision=Decision(None, return_kept=return_kept))
    context.items = list(items)
    return context


class Engines:
    """A client of several engines; each worker knows some keys."""

    def __init__(self, *workers: dict[str, str]) -> None:
        self.workers, self.calls = workers, 0
        self.engine_core = SimpleNamespace(call_utility_all_async=self.call)

    async def call(self, utility: str, method: str, timeout: Any, args: tuple[Any, ...], kwargs: Any) -> list[Any]:
        assert (utility, method) == ("collective_rpc", "vllm_prune_kept")
        self.calls += 1
        # One engine per worker, and a second worker of each, which chose the same.
        return [[[known.get(key) for key in args[0]]] * 2 for known in self.workers]


async def test_every_engine_is_asked() -> None:
    client = Engines({"a": "A"}, {"b": "B"}, {})
    context = request(item("a"), item("b"), item("c"), item("a"))
    await fetch_kept(client, context)
    assert [entry["kept"] for entry in context.items] == ["A", "B", None, "A"]
    assert client.calls == 1


@pytest.mark.parametrize(
    "context",
    [
        request(item("a"), return_kept=False),
        request(item("a", kept=12)),
        request(item("a") | {"kept": "known here"}),
        request(item("a") | {"grid": None}),
        request(),
    ],
)
async def test_nobody_is_asked_without_need(context: RequestContext) -> None:
    client = Engines({"a": "A"})
    await fetch_kept(client, context)
    assert client.calls == 0


async def test_an_engine_that_does_not_answer_costs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    async def hang(*args: Any) -> list[Any]:
        await asyncio.sleep(60)
        return []

    monkeypatch.setattr(worker_calls, "KEPT_SECONDS", 0.05)
    client, context = SimpleNamespace(engine_core=SimpleNamespace(call_utility_all_async=hang)), request(item("a"))
    await fetch_kept(client, context)
    assert context.items[0]["kept"] is None
