"""From the first signal to the end, with no engine behind the front end."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import CONFIG, configured
from .messages import message

pytestmark = pytest.mark.slow

BODY = {"model": "demo", "max_tokens": 30, "messages": message("hi")}


@pytest.fixture
def prepared(tmp_path: Path):
    with configured(tmp_path, CONFIG):
        yield


async def begun(client: Any, engine: Any) -> asyncio.Task[Any]:
    """A request that the engine answers by now."""
    running = asyncio.create_task(client.post("/v1/chat/completions", json=BODY))
    async with asyncio.timeout(30):
        while not engine.core.requests:
            await asyncio.sleep(0.01)
    return running


async def test_what_runs_ends_and_nothing_new_is_taken(prepared: None) -> None:
    from .engine import arguments, front_end

    async with front_end(arguments(), seconds=0.05) as (client, engine):
        running = await begun(client, engine)
        assert (await client.get("/health/ready")).status_code == 200
        ending = threading.Thread(target=engine.shutdown, args=(10,))
        ending.start()
        await asyncio.sleep(0.2)
        refused = await client.post("/v1/chat/completions", json=BODY)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "server_shutting_down"
        assert (await client.get("/health/ready")).status_code == 503
        assert (await client.get("/health/live")).status_code == 200
        answer = await running
        assert answer.json()["usage"]["completion_tokens"] == 30
        await asyncio.to_thread(ending.join, 10)
        assert not ending.is_alive()


async def test_the_deadline_ends_what_still_runs(prepared: None) -> None:
    from .engine import arguments, front_end

    async with front_end(arguments(), seconds=0.5) as (client, engine):
        running = await begun(client, engine)
        began = time.monotonic()
        ending = threading.Thread(target=engine.shutdown, args=(1,))
        ending.start()
        answer = await running
        assert time.monotonic() - began < 6
        assert answer.status_code in (200, 500, 503)
        assert answer.status_code != 200 or answer.json()["choices"][0]["finish_reason"] == "abort"
        await asyncio.to_thread(ending.join, 10)
        assert not ending.is_alive()
