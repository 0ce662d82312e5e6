"""`vllm-prune serve` on vLLM's Model Runner V2: a budget over HTTP is honoured, reported, counted and traced."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.servers import EAGER, UNBOUND, Server

from .. import runner_v2
from .collector import Collector, attributes
from .conftest import DEMO
from .media_files import user
from .test_kv import KV, PARTS

pytestmark = [pytest.mark.engine, pytest.mark.slow]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
BUDGET = {"visual": {"keep": 0.5, "strategy": "uniform"}, "kv": {**KV, "strategy": "snapkv"}}
ARGUMENTS = [*EAGER, "--max-num-seqs", "4", "--block-size", "32"]


def ask(server: Server, pruning: Any, **headers: str) -> Any:
    """Usage of one answer of 60 tokens."""
    body = {"messages": user(PARTS), "max_tokens": 60, "ignore_eos": True, "temperature": 0, "pruning": pruning}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]


def test_a_server_on_v2_compacts(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    here = {name: value for name, value in os.environ.items() if name == "PYTHONPATH"}
    with Collector() as collector:
        traced = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        environment = {**UNBOUND, **traced, **runner_v2.environment(here)}
        with Server(DEMO, "prune", ARGUMENTS, log=log, environment=environment) as server:
            on = ask(server, BUDGET, traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
            off = ask(server, None)
            counted = server.metric("vllm_prune_kv_compactions_total", strategy="snapkv")
            spans = collector.wait(lambda spans: "compact" in {span.name for span in spans})
    assert "Using V2 Model Runner" in log.read_text()
    assert off["pruning"]["kv"] is None
    visual, kv = on["pruning"]["visual"], on["pruning"]["kv"]
    assert visual["kept_tokens"] * 2 == visual["input_tokens"]
    assert kv["compactions"] > 2
    assert kv["kept_tokens"] == on["prompt_tokens"] // 5
    assert counted == kv["compactions"]
    worked = {span.name: span for span in spans if span.trace_id.hex() == TRACE}
    assert {"encode", "score", "compact"} <= set(worked)
    assert attributes(worked["encode"])["vllm_prune.items"] == len(PARTS)
    assert attributes(worked["compact"])["vllm_prune.strategy"] == "snapkv"
