"""HTTP: one arm over all samples, with bounded concurrency."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from .arms import Arm
from .graders import grade
from .samples import Sample

ATTEMPTS = 3
TIMEOUT_SECONDS = 600


class SweepError(RuntimeError):
    """The sweep cannot go on; the message says what to change. Finished cells are kept."""


class Refused(SweepError):
    """The server answered a request with a 4xx: it cannot serve this arm."""


@dataclass(frozen=True)
class Answer:
    """One graded answer with what it cost.

    Attributes:
        id: of the sample.
        text: what the model said.
        right: the grade.
        prompt_tokens: tokens prefilled.
        visual_input, visual_kept: visual tokens before and after pruning; equal where nothing is pruned.
        kv_rows: rows cached when the prompt was complete.
        kv_evicted: rows evicted over the whole request.
        clamped: whether the operator's limits changed the budget.
    """

    id: str
    text: str
    right: bool
    prompt_tokens: int
    visual_input: int = 0
    visual_kept: int = 0
    kv_rows: int = 0
    kv_evicted: int = 0
    clamped: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def answer_of(sample: Sample, reply: dict[str, Any]) -> Answer:
    """Grade a chat completion and read its usage.

    Raises:
        SweepError: an answer without `usage.pruning`.
    """
    usage = reply["usage"]
    if "pruning" not in usage:
        raise SweepError("the server's answers carry no usage.pruning; is it a vllm-prune server? Look at --url")
    text = reply["choices"][0]["message"].get("content") or ""
    visual, kv = usage["pruning"].get("visual") or {}, usage["pruning"].get("kv") or {}
    return Answer(
        sample.id, text, grade(text, sample.expectation), usage["prompt_tokens"],
        visual.get("input_tokens", 0), visual.get("kept_tokens", 0),
        kv.get("prompt_tokens", usage["prompt_tokens"]), kv.get("evicted_tokens", 0),
        bool(usage["pruning"].get("clamped")),
    )  # fmt: skip


class Client:
    """A running server.

    Args:
        url: without `/v1`.
        api_key: sent as a bearer token; None sends none.
        concurrency: requests in flight.
    """

    def __init__(self, url: str, api_key: str | None = None, concurrency: int = 8) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.concurrency = concurrency
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def get(self, path: str) -> Any:
        """JSON of a GET.

        Raises:
            SweepError: no server, or not ours.
        """
        try:
            reply = httpx.get(f"{self.url}{path}", headers=self._headers, timeout=60, trust_env=False)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SweepError(f"no server at {self.url} ({error}); start one with vllm-prune serve") from None
        if reply.status_code != 200:
            raise SweepError(f"GET {self.url}{path}: {reply.status_code} {message_of(reply)}")
        return reply.json()

    async def ask(self, model: str, arm: Arm, samples: Sequence[Sample], done: Callable[[], None]) -> list[Answer]:
        """Ask every sample under one arm, in order; `done` is called per answer.

        Raises:
            Refused: the server does not take this arm.
            SweepError: the server fails.
        """
        gate = asyncio.Semaphore(self.concurrency)
        limits = httpx.Limits(max_connections=self.concurrency)
        timeout = httpx.Timeout(TIMEOUT_SECONDS)
        async with httpx.AsyncClient(
            headers=self._headers, timeout=timeout, limits=limits, trust_env=False
        ) as connection:

            async def one(sample: Sample) -> Answer:
                async with gate:
                    body = {**sample.body(), "model": model, "pruning": arm.pruning}
                    answer = answer_of(sample, await self._post(connection, body, sample.id))
                    done()
                    return answer

            tasks = [asyncio.create_task(one(sample)) for sample in samples]
            try:
                return list(await asyncio.gather(*tasks))
            except BaseException:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise

    async def _post(self, connection: httpx.AsyncClient, body: dict[str, Any], sample: str) -> dict[str, Any]:
        problem = ""
        for attempt in range(ATTEMPTS):
            await asyncio.sleep(attempt)
            try:
                reply = await connection.post(f"{self.url}/v1/chat/completions", json=body)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__} {error}"
                continue
            if reply.status_code == 200:
                answer: dict[str, Any] = reply.json()
                return answer
            problem = f"{reply.status_code} {message_of(reply)}"
            if reply.status_code in (401, 403):
                raise SweepError(f"{problem}; set OPENAI_API_KEY")
            if reply.status_code < 500 and reply.status_code != 429:
                raise Refused(f"sample {sample}: {problem}")
        raise SweepError(f"sample {sample} failed {ATTEMPTS} times, at last with: {problem}; run again to go on")


def message_of(reply: httpx.Response) -> str:
    """The message of an OpenAI error body, or the start of whatever came."""
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return reply.text[:200]
