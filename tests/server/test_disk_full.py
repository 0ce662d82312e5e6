"""A server whose temporary folder is full goes on answering and counting; Ctrl-C then ends it as any other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.servers import Server

from .guarded import until
from .hostile import HostileHost
from .make_serve import MakeServe, started, stream
from .media_files import image_part, png, user

pytestmark = pytest.mark.engine

MIB = 1 << 20
BUDGETS = (
    {"visual": {"keep": 0.5, "strategy": "uniform"}},
    {"visual": {"keep": 0.4, "strategy": "divprune"}, "kv": {"keep": 0.5, "strategy": "knorm", "buffer": 4}},
    {"kv": {"max_tokens": 12, "strategy": "snapkv", "buffer": 4}},
)


@pytest.fixture(scope="module")
def small() -> Iterator[Path | None]:
    """A file system of 64 MiB, or None for who may not mount one.

    Its path is short, as vLLM puts sockets there, whose names may have 107 characters.
    """
    folder = Path(tempfile.mkdtemp(prefix="small-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        folder.rmdir()
        yield None
        return
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


@pytest.fixture(scope="module")
def make_serve(small: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeServe]:
    """`make serve` with its files on that file system; eager, as the compiler's need more room than is there."""
    folder = tmp_path_factory.mktemp("full")
    config = folder / "prune.yaml"
    config.write_text("media: {private: [127.0.0.0/8]}\n")
    variables = {} if small is None else {"TMPDIR": str(small), "VLLM_MEDIA_CACHE": str(small / "cache")}
    with MakeServe(folder, folder / "server.log", ["--config", str(config)], variables) as running:
        yield running


def fill(folder: Path) -> None:
    """Leave not one byte."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(MIB))
    with (folder / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1))
    assert os.statvfs(folder).f_bavail == 0


def ask(server: Server, url: str, budget: object, number: int) -> httpx.Response:
    content = [{"type": "image_url", "image_url": {"url": url}}, image_part(png(112, 140, number))]
    body = {"messages": user(content), "max_tokens": 8, "ignore_eos": True, "pruning": budget}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def test_a_full_temporary_folder_costs_no_answer(small: Path | None, make_serve: MakeServe) -> None:
    if small is None:
        pytest.skip("mounting a small file system needs root")
    server = make_serve
    with HostileHost({f"/{n}.png": png(140, 140, n) for n in range(9)}) as host:
        fill(small)
        for number, budget in enumerate(BUDGETS):
            answer = ask(server, host.url(f"/{number}.png"), budget, number)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 8
        assert ask(server, host.url("/0.png"), {"visual": {"keep": 7}}, 3).status_code == 400
        assert ask(server, host.url("/redirect?to=/nothing-here"), None, 4).status_code == 400
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        counted = {strategy: kept(server, strategy) for strategy in ("uniform", "divprune")}
        assert min(counted.values()) > 0
        assert server.metric("vllm_prune_rejections_total") > 0
        (small / "filler").unlink()
        assert ask(server, host.url("/5.png"), BUDGETS[0], 5).status_code == 200
        assert kept(server, "uniform") > counted["uniform"]


def test_ctrl_c_drains_make_serve_and_leaves_no_process(make_serve: MakeServe) -> None:
    family, reasons = make_serve.processes(), list[str]()
    reading = started(stream, make_serve, reasons, max_tokens=300)
    until(lambda: bool(reasons))
    make_serve.send(signal.SIGINT)
    make_serve.check_ended_by(signal.SIGINT, family)
    reading.join(10)
    assert reasons[-1] == "length"


def kept(server: Server, strategy: str) -> float:
    """Visual tokens that `/metrics` has counted for a strategy."""
    return server.metric("vllm_prune_visual_tokens_kept_total", strategy=strategy)
