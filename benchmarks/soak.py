"""Thousands of mixed requests against one server: does it stay as it was? `python -m benchmarks.soak [--save]`.

Images, videos and text, every kind of budget, streamed or not, some clients that leave, some that attack. At the end
memory is where it was, every cache block is back, every request was answered or refused with a reason, and a sample
of the answers equals what the same requests got while nothing else ran.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer
from rich.progress import Progress

from .machine import RESULTS, hardware
from .random_model import DEMO
from .servers import Server
from .tasks import sample

CONFIG = """
limits: {min_keep: 0.01}
presets:
  fast: {visual: {keep: 0.5}}
"""
# A small pool and few compiled kernels kept, so that what fills up once is full early and the rest would be a leak:
# with oneDNN's default of 1,024 kernels the worker grows by some 75 MiB over the first 20,000 requests, and then stops.
ARGUMENTS = ["--max-num-seqs", "32", "--block-size", "32", "--num-gpu-blocks-override", "512"]
ENVIRONMENT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8"}
BUDGETS: tuple[Any, ...] = (
    None,
    "fast",
    {"visual": {"keep": 0.5, "strategy": "gui_dedup"}},
    {"visual": {"keep": 0.7, "strategy": "uniform"}, "kv": {"keep": 0.5, "strategy": "streaming", "buffer": 8}},
    {"visual": {"max_tokens": 24}},
    {"kv": {"keep": 0.4, "strategy": "snapkv", "buffer": 4}},
    {"kv": {"max_tokens": 40, "strategy": "gui_kv"}},
    {"visual": None, "kv": None},
)
TRUNCATED = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(64)).decode()
QUIET = 8.0


@dataclass(frozen=True)
class Case:
    """One kind of request.

    Attributes:
        body: as sent.
        bad: whether it deserves a refusal.
    """

    body: dict[str, Any]
    bad: bool = False


@dataclass
class Tally:
    """What came back."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, dict[str, float]]] = field(default_factory=list)


def good_cases(model: str, count: int) -> list[Case]:
    """Answerable requests: screens, videos and text under all budgets."""
    cases = []
    for number in range(count):
        shown = sample("test", number, "appeared") if number % 9 == 8 else sample("test", number)
        messages = [{"role": "user", "content": shown.question}] if number % 7 == 6 else shown.to_chat()
        body = {"model": model, "messages": messages, "max_tokens": 12, "temperature": 0}
        budget = BUDGETS[number % len(BUDGETS)]
        cases.append(Case(body if budget is None else {**body, "pruning": budget}))
    return cases


def bad_cases(model: str) -> list[Case]:
    """Requests that must be refused with a 400 and nothing else."""
    picture = sample("test", 0).to_chat()

    def of(content: Any, **more: Any) -> Case:
        messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
        return Case({"model": model, "messages": messages, "max_tokens": 4, **more}, bad=True)

    def image(url: str) -> Case:
        return of([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])

    return [
        of(picture, pruning={"visual": {"keep": 0}}),
        of(picture, pruning={"visual": {"keep": True}}),
        of(picture, pruning={"visual": {"keep": 0.5, "max_tokens": 3}}),
        of(picture, pruning={"kv": {"strategy": "no such", "keep": 0.5}}),
        of(picture, mm_processor_kwargs={"vllm_prune": {"keep": 0.5}}),
        image(f"data:image/png;base64,{TRUNCATED}"),
        image("http://127.0.0.1:9/secret.png"),
        image("file:///etc/hostname"),
    ]


class Soak:
    """Sends the load and watches the server."""

    def __init__(self, server: Server, seed: int, progress: Progress) -> None:
        self.server, self.rng, self.progress = server, random.Random(seed), progress
        model = server.model_name
        self.good, self.bad = good_cases(model, 252), bad_cases(model)
        self.tally = Tally()

    async def alone(self, client: httpx.AsyncClient, numbers: list[int]) -> dict[int, str]:
        """Answers of some requests while nothing else runs."""
        return {number: (await self._post(client, self.good[number].body))[1] for number in numbers}

    async def run(self, requests: int, concurrency: int) -> dict[str, Any]:
        """The load, between two rounds of the same requests alone."""
        numbers = sorted(self.rng.sample(range(len(self.good)), 200))
        # The server closes connections that were idle for five seconds; a client that reuses one then reads an error.
        limits = httpx.Limits(max_connections=concurrency + 2, keepalive_expiry=2)
        async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:
            expected = await self.alone(client, numbers)
            watcher = asyncio.create_task(self._watch())
            started = time.perf_counter()
            await self._load(client, requests, concurrency, expected)
            seconds = time.perf_counter() - started
            watcher.cancel()
            await asyncio.sleep(QUIET)
            again = await self.alone(client, numbers)
        self.tally.wrong += [f"afterwards: request {n}" for n in expected if expected[n] != again[n]]
        await asyncio.sleep(QUIET)
        return {"seconds": seconds, "compared": len(expected), **self._summary(requests)}

    async def _load(self, client: httpx.AsyncClient, requests: int, concurrency: int, expected: dict[int, str]) -> None:
        task = self.progress.add_task("requests", total=requests)
        numbers = iter(range(requests))

        async def worker() -> None:
            for _ in numbers:
                await self._one(client, expected)
                self.progress.update(task, advance=1)

        await asyncio.gather(*(worker() for _ in range(concurrency)))

    async def _one(self, client: httpx.AsyncClient, expected: dict[int, str]) -> None:
        draw = self.rng.random()
        try:
            await self._send(client, expected, draw)
        except httpx.TransportError as error:
            kind = "attack" if draw < 0.01 else "leaving client" if draw < 0.04 else "request"
            self._note(f"{kind}: {type(error).__name__}", False, str(error))

    async def _send(self, client: httpx.AsyncClient, expected: dict[int, str], draw: float) -> None:
        if draw < 0.01:
            status, text = await self._post(client, self.rng.choice(self.bad).body)
            self._note("refused" if status == 400 else f"attack answered {status}", status == 400, text)
        elif draw < 0.04:
            await self._leave(client, self.rng.choice(self.good).body)
        else:
            number = self.rng.randrange(len(self.good))
            streamed = self.rng.random() < 0.5
            ask = self._stream if streamed else self._post
            status, text = await ask(client, self.good[number].body)
            right = status == 200 and text == expected.get(number, text)
            self._note(f"answered {status}", right, f"request {number}: {text!r}, alone {expected.get(number)!r}")

    def _note(self, outcome: str, right: bool, detail: str) -> None:
        self.tally.outcomes[outcome] += 1
        if not right:
            self.tally.wrong.append(f"{outcome}: {detail}"[:300])

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[int, str]:
        response = await client.post(f"{self.server.url}/v1/chat/completions", json=body)
        if response.status_code != 200:
            return response.status_code, response.text
        answer = response.json()
        assert answer["usage"]["pruning"] is not None
        return 200, str(answer["choices"][0]["message"]["content"])

    async def _stream(self, client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[int, str]:
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        parts, usage = [], None
        async with client.stream("POST", f"{self.server.url}/v1/chat/completions", json=streamed) as response:
            if response.status_code != 200:
                return response.status_code, (await response.aread()).decode()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    usage = chunk.get("usage") or usage
                    parts += [choice["delta"].get("content") or "" for choice in chunk.get("choices", ())]
        return (200 if usage and usage.get("pruning") else 599), "".join(parts)

    async def _leave(self, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        long = {**body, "max_tokens": 400, "ignore_eos": True, "stream": True}
        async with client.stream("POST", f"{self.server.url}/v1/chat/completions", json=long) as response:
            async for line in response.aiter_lines():
                if line and self.rng.random() < 0.3:
                    break
        self.tally.outcomes["left"] += 1

    async def _watch(self) -> None:
        assert self.server.process is not None
        root = psutil.Process(self.server.process.pid)
        started = time.perf_counter()
        while True:
            held = await asyncio.get_running_loop().run_in_executor(None, memory_by_kind, root)
            self.tally.memory.append((time.perf_counter() - started, held))
            await asyncio.sleep(3)

    def _summary(self, requests: int) -> dict[str, Any]:
        tally = self.tally
        return {
            "requests": requests,
            "outcomes": dict(sorted(tally.outcomes.items())),
            "answered_or_reported": sum(tally.outcomes.values()),
            "wrong": tally.wrong[:20],
            "wrong_count": len(tally.wrong),
            "memory_mib": growth(tally.memory),
            "running": self.server.metric("vllm:num_requests_running"),
            "cache_in_use": self.server.metric("vllm:kv_cache_usage_perc"),
            "inflight": self.server.metric("vllm_prune_inflight_requests"),
            "inflight_tokens": self.server.metric("vllm_prune_inflight_visual_tokens"),
            "preemptions": self.server.metric("vllm:num_preemptions_total"),
        }


def memory_by_kind(root: psutil.Process) -> dict[str, float]:
    """MiB that the processes of a server hold, by kind; pages that several share are divided among them."""
    held: dict[str, float] = {"all": 0.0}
    for one in [root, *root.children(recursive=True)]:
        try:
            kind = "server" if one == root else _kind_of(one)
            size = one.memory_full_info().pss / 2**20
        except psutil.Error:
            continue
        held[kind] = held.get(kind, 0.0) + size
        held["all"] += size
    return held


def _kind_of(child: psutil.Process) -> str:
    if (name := child.name()).startswith("VLLM"):
        return name
    return "decoders" if "media_worker" in " ".join(child.cmdline()[1:3]) else "other"


def growth(memory: list[tuple[float, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """What each kind of process held in the last two thirds of a run, and by how much a fitted line rises."""
    settled = memory[len(memory) // 3 :]
    times = [moment for moment, _ in settled]
    found = {}
    for kind in sorted({kind for _, held in settled for kind in held}):
        sizes = [held.get(kind, 0.0) for _, held in settled]
        slope = statistics.linear_regression(times, sizes).slope if len(times) > 2 else 0.0
        rise = slope * (times[-1] - times[0])
        found[kind] = {"first": sizes[0], "last": sizes[-1], "rise": rise, "rise_per_hour": slope * 3600}
    return found


def main(
    requests: Annotated[int, typer.Option(help="Requests in all.")] = 10_000,
    concurrency: Annotated[int, typer.Option(help="Requests in flight.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the mix.")] = 7,
    save: Annotated[bool, typer.Option(help="Write the result under benchmarks/results/.")] = False,
) -> None:
    """Run and print; exits 1 when anything was wrong."""
    folder = Path(tempfile.mkdtemp(prefix="vllm-prune-soak-"))
    (folder / "prune.yaml").write_text(CONFIG)
    log = folder / "server.log"
    server = Server(DEMO, "prune", ARGUMENTS, config=folder / "prune.yaml", log=log, environment=ENVIRONMENT)
    with Progress() as progress, server:
        found = asyncio.run(Soak(server, seed, progress).run(requests, concurrency))
    result = {
        "command": "python -m benchmarks.soak --save",
        "hardware": hardware(),
        "concurrency": concurrency,
        **found,
    }
    print(json.dumps(result, indent=1))
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    held = result["running"] or result["cache_in_use"] or result["inflight"] or result["inflight_tokens"]
    if result["wrong_count"] or held or result["answered_or_reported"] != requests:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
