"""Locust users that ask about screenshots under mixed budgets; see README.md beside this file.

Environment:
    VLLM_PRUNE_MIX: budgets as JSON by name, each the `pruning` field of a request.
    VLLM_PRUNE_TOKENS: tokens to generate per request (32).
    VLLM_PRUNE_SIDE: width and height of the screenshots in pixels (672).
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import time
from typing import Any

from locust import HttpUser, constant, events, task
from PIL import Image

MIX: dict[str, Any] = json.loads(
    os.environ.get("VLLM_PRUNE_MIX", '{"off": {"visual": null, "kv": null}, "keep 0.5": {"visual": {"keep": 0.5}}}')
)
TOKENS = int(os.environ.get("VLLM_PRUNE_TOKENS", "32"))
SIDE = int(os.environ.get("VLLM_PRUNE_SIDE", "672"))


def screenshot() -> str:
    """A different picture each time, so that no cache answers for the vision tower."""
    page = Image.new("RGB", (SIDE, SIDE), (245, 245, 245))
    for _ in range(40):
        page.paste(tuple(random.choices(range(256), k=3)), (x := random.randrange(SIDE), y := random.randrange(SIDE),
                                                            x + 84, y + 28))  # fmt: skip
    data = io.BytesIO()
    page.save(data, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


class Asker(HttpUser):
    """Asks, waits for the answer, asks again."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """Learn the model's name."""
        key = os.environ.get("OPENAI_API_KEY")
        self.client.headers.update({"Authorization": f"Bearer {key}"} if key else {})
        self.model = self.client.get("/v1/models").json()["data"][0]["id"]

    @task
    def ask(self) -> None:
        """One streamed request; time to first token and tokens kept are entries of their own."""
        name, pruning = random.choice(list(MIX.items()))
        content = [
            {"type": "image_url", "image_url": {"url": screenshot()}},
            {"type": "text", "text": "what is on the screen?"},
        ]
        body = {
            "model": self.model, "messages": [{"role": "user", "content": content}], "max_tokens": TOKENS,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}, "pruning": pruning,
        }  # fmt: skip
        started, first, usage = time.perf_counter(), None, {}
        with self.client.post(
            "/v1/chat/completions", json=body, name=f"chat [{name}]", stream=True, catch_response=True
        ) as reply:
            if reply.status_code != 200:
                reply.failure(f"{reply.status_code} {reply.text[:200]}")
                return
            for line in reply.iter_lines():
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                usage = chunk.get("usage") or usage
                if first is None and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    first = 1000 * (time.perf_counter() - started)
            # Locust stops its clock at the headers of a streamed answer.
            reply.request_meta["response_time"] = 1000 * (time.perf_counter() - started)
            reply.success()
        report("TTFT ms", name, first)
        report("visual tokens kept", name, (usage.get("pruning", {}).get("visual") or {}).get("kept_tokens"))


def report(kind: str, name: str, value: float | None) -> None:
    """An entry of Locust's tables; its `response_time` is whatever `kind` says."""
    if value is not None:
        events.request.fire(
            request_type=kind, name=f"chat [{name}]", response_time=value, response_length=0, exception=None, context={}
        )
