"""HEAD on probes, and HTTP/1.0, through uvicorn."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from vllm_prune.config.load import PruneConfig

from .application import MODEL, USAGE, Served, streamed

CHUNKS = (b'data: {"usage": null}\n\n', b"data: [DONE]\n\n")


@contextmanager
def listening(app: Any, http: Any) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, http=http, lifespan="off", log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(10)


def exchange(port: int, text: str, body: bytes = b"") -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode() + body)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def ask(port: int, version: str, more: str = "") -> tuple[bytes, bytes]:
    body = b'{"model": "%s"}' % MODEL.encode()
    head = f"POST /v1/chat/completions HTTP/{version}\nHost: x\nContent-Type: application/json\n{more}"
    answer = exchange(port, f"{head}Content-Length: {len(body)}\n\n", body)
    head_of_answer, _, rest = answer.partition(b"\r\n\r\n")
    return head_of_answer.lower(), rest


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_streams_to_http_1_0_end_with_the_connection(monkeypatch: pytest.MonkeyPatch, http: str) -> None:
    served = Served(PruneConfig(), streamed(*CHUNKS), monkeypatch)
    with listening(served.app, http) as port:
        for more in ("", "Connection: keep-alive\n"):
            head, rest = ask(port, "1.0", more)
            assert b"transfer-encoding" not in head
            assert b"content-length" not in head
            assert b"connection: close" in head
            assert rest == b"".join(CHUNKS)
        head, rest = ask(port, "1.1", "Connection: close\n")
        assert b"transfer-encoding: chunked" in head
        assert rest.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_answers_of_known_length_keep_it(monkeypatch: pytest.MonkeyPatch, http: str) -> None:
    served = Served(PruneConfig(), None, monkeypatch)
    with listening(served.app, http) as port:
        head, rest = ask(port, "1.0")
        assert f"content-length: {len(rest)}".encode() in head
        assert str(USAGE["total_tokens"]).encode() in rest


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_head_on_a_probe_is_get_without_a_body(monkeypatch: pytest.MonkeyPatch, http: str) -> None:
    served = Served(PruneConfig(), None, monkeypatch)
    with listening(served.app, http) as port:
        answer = exchange(port, "HEAD /health/live HTTP/1.1\nHost: x\nConnection: close\n\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"content-length: 5" in answer.lower()
        assert answer.endswith(b"\r\n\r\n")
    assert served.send("HEAD", "/health/live").content == b""
    assert served.send("GET", "/health/live").content == b"alive"
    assert served.send("HEAD", "/v1/completions").status_code == 405
