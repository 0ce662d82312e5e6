"""A server with tenants and caps, and clients of it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx

from benchmarks.servers import Server
from vllm_prune.config.tenants import hash_key

from .media_files import image_part, png, user

ALPHA, ALPHA_TOO, BETA, GAMMA = (f"key-of-{name}-0123456789abcdef" for name in ("alpha", "alpha-2", "beta", "gamma"))

CONFIG = f"""
presets:
  fast: {{visual: {{keep: 0.25, strategy: uniform}}}}
limits: {{min_keep: 0.1}}
admission:
  max_inflight_requests: 3
  max_inflight_visual_tokens: 200
  max_inflight_kv_rows: 30000
  max_waiting: 2
  max_wait_seconds: 2.5
  max_body_bytes: 400000
  max_body_seconds: 2
media: {{private: [127.0.0.1], fetch_seconds: 60, max_items: 5}}
tenants:
  "{hash_key(ALPHA)}": &alpha {{name: alpha}}
  "{hash_key(ALPHA_TOO)}": *alpha
  "{hash_key(BETA)}":
    name: beta
    default_preset: fast
    limits: {{min_keep: 0.2, max_keep: 0.5}}
    max_inflight_requests: 2
"""
TENANTS = f"""{{"{hash_key(GAMMA)}": {{"name": "gamma", "rate": {{"requests_per_second": 0.5, "burst": 2}}}}}}"""
"""For the environment."""

# 20 and 100 visual tokens.
SMALL, MIDDLE = image_part(png(112, 140)), image_part(png(280, 280))


def headers(key: str | None) -> dict[str, str]:
    """The header that carries an API key."""
    return {} if key is None else {"authorization": f"Bearer {key}"}


class Guarded:
    """Requests to one server."""

    def __init__(self, server: Server) -> None:
        self.server, self.url = server, server.url
        models = httpx.get(f"{server.url}/v1/models", headers=headers(ALPHA), timeout=30)
        self.model = models.json()["data"][0]["id"]

    def get(self, path: str, key: str | None = None) -> httpx.Response:
        """GET."""
        return httpx.get(f"{self.url}{path}", headers=headers(key), timeout=30)

    def chat(self, key: str | None, parts: list[dict[str, Any]] | None = None, **more: Any) -> httpx.Response:
        """A chat request of two output tokens."""
        return self.post("/v1/chat/completions", key, self.body(parts, **more))

    def post(self, path: str, key: str | None, content: dict[str, Any]) -> httpx.Response:
        """POST of JSON."""
        return httpx.post(f"{self.url}{path}", json=content, headers=headers(key), timeout=60)

    def body(self, parts: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
        """The JSON of a chat request."""
        return {"model": self.model, "messages": user(parts or []), "max_tokens": 2, **more}

    def hold(self, key: str, tokens: int = 1) -> Held:
        """A request in flight that the engine has not seen, with room for so many visual tokens, until it is closed."""
        before = self.server.metric("vllm_prune_inflight_requests")
        held = Held(self, key, tokens)
        until(lambda: self.server.metric("vllm_prune_inflight_requests") == before + 1)
        return held

    def idle(self) -> None:
        """Wait until nothing is in flight."""
        names = ("vllm:num_requests_running", "vllm_prune_inflight_requests", "vllm_prune_inflight_visual_tokens")
        until(lambda: all(self.server.metric(name) == 0 for name in names))


class Held:
    """A chat request whose picture never arrives; closing it is what a client does that goes away."""

    def __init__(self, guarded: Guarded, key: str, tokens: int) -> None:
        # Never accepted: the kernel connects whoever comes, and nobody answers.
        self.silent = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{self.silent.getsockname()[1]}/picture.png"
        part = {"type": "image_url", "image_url": {"url": url}}
        budget = {"visual": {"max_tokens": tokens, "strategy": "uniform"}}
        text = json.dumps(guarded.body([part], pruning=budget)).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
        )
        self.connection = socket.create_connection(("127.0.0.1", guarded.server.port), timeout=30)
        self.connection.sendall(head.encode() + text)

    def close(self) -> None:
        """Leave."""
        self.connection.close()
        self.silent.close()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def until(true: Callable[[], bool], seconds: float = 30) -> float:
    """Wait for something; returns the seconds that it took."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds
        time.sleep(0.05)
    return time.monotonic() - start


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is a refusal in OpenAI's form; returns its error object."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["message"]
    if status in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
    return error
