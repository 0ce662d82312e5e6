"""Servers that start and end: drain, death of the engine, plain vLLM with our plugin, a model without an adapter."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch

from benchmarks.servers import EAGER, UNBOUND, Server
from vllm_prune_server.lifecycle import CLOSE_SECONDS

from .conftest import DEMO
from .guarded import refused, until
from .make_serve import MakeServe, started, stream
from .media_files import image_part, png, user

pytestmark = pytest.mark.engine


def ask(server: Server, **more: Any) -> httpx.Response:
    body = {"model": server.model_name, "messages": user([image_part(png(112, 140))]), "max_tokens": 2, **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)


def status(server: Server, path: str) -> int:
    return httpx.get(f"{server.url}{path}", timeout=10).status_code


def test_sigterm_drains_make_serve_and_leaves_no_process(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    # A user may have preloaded an OpenMP runtime already; vLLM refuses to start with two.
    preloaded = {"LD_PRELOAD": str(next((Path(torch.__file__).parent / "lib").glob("libgomp*")))}
    with MakeServe(tmp_path, log, ["--shutdown-timeout", "10"], preloaded) as server:
        family = server.processes()
        answers: list[httpx.Response] = []
        short: list[str] = []
        long: list[str] = []
        slow = {"max_tokens": 250, "ignore_eos": True, "pruning": {"visual": {"keep": 0.5}}}
        threads = [started(stream, server, long, max_tokens=8000)]
        upload = socket.create_connection(("127.0.0.1", server.port))
        upload.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        until(lambda: bool(long))
        threads.append(started(lambda: answers.append(ask(server, **slow))))
        threads.append(started(stream, server, short, max_tokens=250))
        until(lambda: bool(short) and server.metric("vllm_prune_inflight_requests") == 3)
        assert not answers
        server.send(signal.SIGTERM)
        start = time.monotonic()
        until(lambda: status(server, "/health/ready") == 503)
        # Long before what runs has ended.
        assert time.monotonic() - start < 5
        late = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": user([])}, timeout=10)
        error = refused(late, 503, "server_shutting_down")
        assert error["type"] == "server_error"
        assert status(server, "/health/live") == 200
        assert status(server, "/health/startup") == 200
        server.check_ended_by(signal.SIGTERM, family)
        # The deadline, vLLM's own teardown of the engine, and connections that would never have ended.
        assert time.monotonic() - start < 10 + 15 + CLOSE_SECONDS
        for thread in threads:
            thread.join(10)
        upload.close()
    assert answers[0].status_code == 200
    assert answers[0].json()["usage"]["completion_tokens"] == 250
    assert (short[-1], long[-1]) == ("length", "abort")
    ready = [line for line in log.read_text().splitlines() if line.startswith("vllm-prune is ready: ")]
    assert ready == [f"vllm-prune is ready: {server.url}"]


def test_plain_vllm_takes_the_budget_from_xargs(tmp_path: Path) -> None:
    with Server(DEMO, "plain", EAGER, log=tmp_path / "server.log", environment=UNBOUND) as server:
        full = ask(server).json()["usage"]["prompt_tokens"]
        spec = '{"visual": {"keep": 0.5, "strategy": "uniform"}}'
        pruned = ask(server, vllm_xargs={"pruning": spec}).json()["usage"]["prompt_tokens"]
        assert full - pruned == 10
        bad = ask(server, vllm_xargs={"pruning": spec.replace("0.5", "5")})
        assert bad.status_code == 400
        assert bad.json()["error"]["param"] == "pruning.visual.keep"
        assert ask(server, mm_processor_kwargs={"vllm_prune": {"keep": 0.5}}).status_code == 400
        # Without our scheduler and worker there is nobody to evict.
        evict = ask(server, vllm_xargs={"pruning": '{"kv": {"keep": 0.5}}'})
        assert evict.status_code == 400
        assert evict.json()["error"]["param"] == "pruning.kv"
        assert "--scheduler-cls" in evict.json()["error"]["message"]


def test_a_model_without_an_adapter_and_another_worker_refuse_budgets(text_model: Path, tmp_path: Path) -> None:
    arguments = [*EAGER, "--max-model-len", "8192", "--worker-cls", "auto"]
    with Server(text_model, "prune", arguments, log=tmp_path / "server.log", environment=UNBOUND) as server:
        startup = httpx.get(f"{server.url}/health/startup", timeout=30).json()
        assert startup["pruning"] is False
        assert startup["findings"]
        defaults = httpx.get(f"{server.url}/v1/pruning/strategies", timeout=30).json()["defaults"]
        assert defaults["video"]["options"]["where"] == "embed"
        body = {"model": server.model_name, "prompt": "hello", "max_tokens": 2}
        plain = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
        assert plain.status_code == 200
        asked = {**body, "pruning": {"visual": {"keep": 0.5}}}
        refused = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=120)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "pruning.visual"
        assert any(text in refused.json()["error"]["message"] for text in startup["findings"])
        assert startup["kv"] is False
        asked = {**body, "pruning": {"kv": {"keep": 0.5}}}
        refused = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=120)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "pruning.kv"
        assert startup["kv_findings"][0] in refused.json()["error"]["message"]
        assert server.metric("vllm_prune_kv_eviction_skipped_total", reason="worker") == 1
        check_death(server)
    said = (tmp_path / "server.log").read_text()
    assert "visual budgets are refused" in said
    assert "Fatal Python error: Bus error" in said
    assert "worker_busy_loop" in said


def check_death(server: Server) -> None:
    """A worker that crashes while it decodes takes the server with it, soon, with a stack and a status that says so."""
    assert server.process is not None
    body = {"model": server.model_name, "prompt": "hello", "max_tokens": 8000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        family = psutil.Process(server.process.pid).children(recursive=True)
        next(one for one in family if one.name() == "VLLM::Worker").send_signal(signal.SIGBUS)
        start = time.monotonic()
        until(lambda: not alive(server))
        assert time.monotonic() - start < 15
        with contextlib.suppress(httpx.HTTPError):
            assert not any('"finish_reason":"length"' in line for line in lines)
    assert server.process.wait(30) == 1
    assert time.monotonic() - start < 40


def alive(server: Server) -> bool:
    """Whether the probe says so."""
    try:
        return status(server, "/health/live") == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    """A tiny random Qwen2 checkpoint with the demo model's tokenizer."""
    import shutil

    from transformers import AutoConfig, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path / "text"
    folder.mkdir()
    for file in DEMO.iterdir():
        if file.name.startswith(("tokenizer", "vocab", "merges", "special", "added")):
            shutil.copy(file, folder)
    vocabulary = AutoConfig.from_pretrained(DEMO).text_config.vocab_size
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=8192,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder
