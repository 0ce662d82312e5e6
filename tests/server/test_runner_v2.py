"""`vllm-prune serve` on vLLM's Model Runner V2: a budget over HTTP is honoured, reported and counted."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from benchmarks.servers import EAGER, Server

from .. import runner_v2
from .conftest import DEMO
from .test_kv import KV, PARTS, user

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_a_server_on_v2_compacts(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    here = {name: value for name, value in os.environ.items() if name == "PYTHONPATH"}
    arguments = [*EAGER, "--max-num-seqs", "4", "--block-size", "32"]
    with Server(DEMO, "prune", arguments, log=log, environment=runner_v2.environment(here)) as server:
        model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
        pruning = {"visual": {"keep": 0.5, "strategy": "uniform"}, "kv": {**KV, "strategy": "snapkv"}}
        request = {"model": model, "messages": user(PARTS), "max_tokens": 60, "ignore_eos": True, "temperature": 0}
        off, on = (
            httpx.post(f"{server.url}/v1/chat/completions", json={**request, "pruning": budget}, timeout=120).json()
            for budget in (None, pruning)
        )
        counted = server.metric("vllm_prune_kv_compactions_total", strategy="snapkv")
    usage = on["usage"]["pruning"]
    assert "Using V2 Model Runner" in log.read_text()
    assert off["usage"]["pruning"]["kv"] is None
    assert usage["visual"]["kept_tokens"] * 2 == usage["visual"]["input_tokens"]
    assert usage["kv"]["compactions"] > 2
    assert usage["kv"]["kept_tokens"] == on["usage"]["prompt_tokens"] // 5
    assert counted == usage["kv"]["compactions"]
