"""One streamed request, timed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx

from .workloads import Chat


@dataclass
class Answer:
    """What one request measured.

    Attributes:
        seconds: in all.
        arrivals: seconds from the request to each chunk with a token.
        usage: as the server reports it.
    """

    seconds: float
    arrivals: list[float] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0]

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks."""
        return [b - a for a, b in pairwise(self.arrivals)]


async def ask(
    client: httpx.AsyncClient, url: str, model: str, chat: Chat, tokens: int, pruning: dict[str, Any] | None
) -> Answer:
    """Send one request and read its stream.

    Raises:
        RuntimeError: the server refused it, or answered without a token.
    """
    body: dict[str, Any] = {
        "model": model, "messages": chat, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    if pruning is not None:
        body["pruning"] = pruning
    started, answer = time.perf_counter(), Answer(0.0)
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{url} answered {response.status_code}: {(await response.aread()).decode()[:2000]}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                _take(json.loads(line[6:]), answer, time.perf_counter() - started)
    answer.seconds = time.perf_counter() - started
    if not answer.arrivals:
        raise RuntimeError(f"{url} answered without a token")
    return answer


def _take(chunk: dict[str, Any], answer: Answer, seconds: float) -> None:
    if "error" in chunk:
        raise RuntimeError(f"the stream ended with {chunk['error']}")
    answer.usage = chunk.get("usage") or answer.usage
    # The opening chunk carries the role alone; the first token comes with the next.
    if chunk["choices"] and chunk["choices"][0]["delta"].get("role") is None:
        answer.arrivals.append(seconds)
