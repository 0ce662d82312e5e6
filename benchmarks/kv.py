"""KV eviction against stock vLLM: a pool that holds two full requests, an ample pool, and a long answer.

`python -m benchmarks.kv --save` writes JSON and a plot under `benchmarks/results/`. Requests are GUI agents'
turns: five screenshots and a long answer. Rounds alternate between the two servers; ratios are medians over rounds.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .machine import RESULTS, hardware, quiet_seconds
from .random_model import parameters
from .servers import Server, alike
from .seven_b import Model, served
from .speed.media import screens

R_KV = {0.97: 0.88, 0.64: 1.17, 0.30: 1.32, 0.14: 1.32}
"""What R-KV's port to vLLM publishes (Zefan-Cai/R-KV, vLLM/benchmark/RESULTS_stress.md): throughput over that of the
full cache, by the share of all requests' rows that the pool holds. Qwen2.5-Math-7B on an H100, 256 requests of 1,724
tokens, 256 rows kept and 128 of buffer. Theirs, not measured here."""
BLOCK = 32
SCREENS = 5


@dataclass
class Load:
    """One round's load.

    Attributes:
        requests: turns to answer, all sent at once.
        tokens: length of each answer.
        pruning: the `pruning` field, None for stock.
    """

    requests: int
    tokens: int
    pruning: dict[str, Any] | None = None


@dataclass
class Round:
    """What a round measured; `running` and `waiting` are samples of the server's own gauges."""

    requests_per_second: float
    running: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)

    @property
    def concurrency(self) -> float:
        """Mean number of running requests while others waited, so while the pool decided; else while any ran."""
        pairs = list(zip(self.running, self.waiting, strict=True))
        queued = [running for running, waiting in pairs if running and waiting]
        return statistics.mean(queued or [running for running, _ in pairs if running] or [0.0])

    @property
    def peak(self) -> float:
        """The most requests that ran at once."""
        return max(self.running, default=0.0)


async def turn(client: httpx.AsyncClient, server: Server, model: str, images: list[str], load: Load) -> list[float]:
    """One request; returns the arrival time of every streamed token."""
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": image}} for image in images]
    content.append({"type": "text", "text": "what should be clicked next?"})
    body: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": content}], "max_tokens": load.tokens,
        "temperature": 0, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    if load.pruning is not None:
        body["pruning"] = load.pruning
    arrivals = []
    async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError((await response.aread()).decode())
        async for line in response.aiter_lines():
            if line.startswith("data: {") and '"content"' in line:
                arrivals.append(time.perf_counter())
    return arrivals


async def round_of(server: Server, model: str, sessions: list[list[str]], load: Load) -> Round:
    """Send all turns at once and watch how many run."""
    await asyncio.sleep(quiet_seconds())
    found = Round(0.0)
    limits = httpx.Limits(max_connections=load.requests + 2)
    async with httpx.AsyncClient(timeout=1800, limits=limits, trust_env=False) as client:

        async def watch() -> None:
            while True:
                await asyncio.sleep(0.5)
                text = (await client.get(f"{server.url}/metrics")).text
                for name, samples in (("running", found.running), ("waiting", found.waiting)):
                    lines = [line for line in text.splitlines() if line.startswith(f"vllm:num_requests_{name}{{")]
                    samples.append(sum(float(line.rsplit(" ", 1)[1]) for line in lines))

        watcher = asyncio.create_task(watch())
        started = time.perf_counter()
        await asyncio.gather(*(turn(client, server, model, images, load) for images in sessions))
        found.requests_per_second = len(sessions) / (time.perf_counter() - started)
        watcher.cancel()
    return found


def arguments(pool_blocks: int | None, most: int, length: int) -> list[str]:
    """Arguments of both servers alike."""
    given = ["--max-model-len", str(length), "--max-num-seqs", str(most), "--block-size", str(BLOCK),
             "--limit-mm-per-prompt", '{"image": 5, "video": 0}', "--max-num-batched-tokens", "2048"]  # fmt: skip
    return given if pool_blocks is None else [*given, "--num-gpu-blocks-override", str(pool_blocks)]


class Bench:
    """Runs the three comparisons on one checkpoint."""

    def __init__(
        self, folder: Path, given: list[str], side: tuple[int, int], keep: float, rounds: int, progress: Progress
    ) -> None:
        self.folder, self.given, self.side, self.rounds, self.progress = folder, given, side, rounds, progress
        self.pruning = {"kv": {"strategy": "gui_kv", "keep": keep}}
        self.logs = Path(tempfile.mkdtemp(prefix="vllm-prune-kv-"))
        self.source = screens(side, seed=5)
        self.prompt = SCREENS * (side[0] // 28) * (side[1] // 28) + 40

    def sessions(self, count: int) -> list[list[str]]:
        """Screenshots of that many turns, none of them seen before."""
        return [[next(self.source) for _ in range(SCREENS)] for _ in range(count)]

    def servers(self, stack: ExitStack, given: list[str]) -> dict[str, Server]:
        """Stock and ours, side by side."""
        environment = alike() | {"VLLM_CPU_KVCACHE_SPACE": "4"}
        return {
            kind: stack.enter_context(
                Server(self.folder, kind, [*given, *self.given], log=self.logs / f"{kind}.log", environment=environment)
            )
            for kind in ("stock", "prune")
        }

    def pool(self, name: str, blocks: int | None, load: Load) -> dict[str, Any]:
        """Throughput and concurrency of both servers with a pool of that many blocks."""
        arms = {"stock": load, "prune": Load(load.requests, load.tokens, self.pruning)}
        found: dict[str, list[Round]] = {kind: [] for kind in arms}
        task = self.progress.add_task(name, total=self.rounds * 2)
        with ExitStack() as stack:
            servers = self.servers(stack, arguments(blocks, load.requests, self.prompt + load.tokens))
            names = {kind: server.model_name for kind, server in servers.items()}
            for kind, server in servers.items():
                asyncio.run(round_of(server, names[kind], self.sessions(1), Load(1, 8, arms[kind].pruning)))
            before = {key: servers["prune"].metric(f"vllm_prune_compaction_seconds_{key}") for key in ("sum", "count")}
            for number in range(self.rounds):
                sessions = self.sessions(load.requests)
                for kind in list(arms)[:: 1 if number % 2 else -1]:
                    found[kind].append(asyncio.run(round_of(servers[kind], names[kind], sessions, arms[kind])))
                    self._report(name, kind, found[kind][-1])
                    self.progress.update(task, advance=1)
            spent = servers["prune"].metric("vllm_prune_compaction_seconds_sum") - before["sum"]
            count = servers["prune"].metric("vllm_prune_compaction_seconds_count") - before["count"]
            preempted = {kind: server.metric("vllm:num_preemptions_total") for kind, server in servers.items()}
        busy = sum(load.requests / one.requests_per_second for one in found["prune"])
        return {"blocks": blocks, "requests": load.requests, "tokens": load.tokens,
                "throughput_ratio": _median(found, lambda one: one.requests_per_second),
                "concurrency_ratio": _median(found, lambda one: one.concurrency),
                "peak_ratio": _median(found, lambda one: one.peak),
                "concurrency": {kind: [one.concurrency for one in rounds] for kind, rounds in found.items()},
                "peak": {kind: [one.peak for one in rounds] for kind, rounds in found.items()},
                "requests_per_second": {kind: [one.requests_per_second for one in rounds]
                                        for kind, rounds in found.items()},
                "preemptions": preempted, "compactions": count, "compaction_share": spent / busy}  # fmt: skip

    def _report(self, name: str, kind: str, found: Round) -> None:
        figures = f"{found.requests_per_second:.3f} requests/s, running {found.concurrency:.1f} of {found.peak:.0f}"
        self.progress.console.print(f"{name}, {kind}: {figures}")

    def long_answer(self, tokens: int) -> dict[str, Any]:
        """Time between tokens of one long answer whose cache is capped, and of the same one on stock."""
        task = self.progress.add_task("long answer", total=2)
        arms = {"stock": Load(1, tokens), "prune": Load(1, tokens, self.pruning)}
        result: dict[str, Any] = {"tokens": tokens}
        images = self.sessions(1)
        with ExitStack() as stack:
            for kind, server in self.servers(stack, arguments(None, 2, self.prompt + tokens)).items():
                asyncio.run(round_of(server, server.model_name, self.sessions(1), Load(1, 8, arms[kind].pruning)))
                arrivals = asyncio.run(_long(server, images[0], arms[kind]))
                gaps = [b - a for a, b in pairwise(arrivals)]
                windows = [statistics.median(gaps[i : i + 128]) for i in range(128, len(gaps) - 127, 128)]
                result[kind] = {"windows": windows, "end_over_start": _mean_end(windows)}
                self.progress.update(task, advance=1)
        return result


async def _long(server: Server, images: list[str], load: Load) -> list[float]:
    async with httpx.AsyncClient(timeout=3600, trust_env=False) as client:
        await asyncio.sleep(quiet_seconds())
        return await turn(client, server, server.model_name, images, load)


def _mean_end(windows: list[float]) -> float:
    """Mean of the last quarter of the windows over that of the first quarter."""
    quarter = max(1, len(windows) // 4)
    return statistics.mean(windows[-quarter:]) / statistics.mean(windows[:quarter])


def _median(found: dict[str, list[Round]], of: Any) -> float:
    return statistics.median(of(ours) / of(stock) for stock, ours in zip(found["stock"], found["prune"], strict=True))


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    ratios = ("requests/s vs stock", "running (while others wait)", "running (peak)")
    table = Table("pool", *ratios, "preemptions (stock, ours)", "compaction share")
    for name in ("tight", "ample"):
        if name not in result:
            continue
        row = result[name]
        table.add_row(name, f"{row['throughput_ratio']:.2f}x", f"{row['concurrency_ratio']:.2f}x",
                      f"{row['peak_ratio']:.2f}x",
                      f"{row['preemptions']['stock']:.0f}, {row['preemptions']['prune']:.0f}",
                      f"{row['compaction_share']:.1%}")  # fmt: skip
    Console(width=120).print(table)
    if "long" in result:
        for kind in ("stock", "prune"):
            print(
                f"{kind}: time between tokens at the end is {result['long'][kind]['end_over_start']:.2f}x the start's"
            )


def plot(result: dict[str, Any], path: Path) -> None:
    """Time between tokens along the long answer, and the ratios of the two pools."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right, crossover) = pyplot.subplots(1, 3, figsize=(14, 4))
    for kind, label in (("stock", "stock vLLM"), ("prune", "vllm-prune, keep 20%")):
        windows = result["long"][kind]["windows"]
        first = result["long"]["prune"]["windows"][0]
        left.plot([128 * (i + 1) for i in range(len(windows))], [w / first for w in windows], label=label)
    left.set(xlabel="tokens decoded", ylabel="time between tokens (ours at the start = 1)", ylim=(0, None))
    left.legend()
    names, keys = ("tight", "ample"), ("throughput_ratio", "concurrency_ratio")
    for offset, (key, label) in enumerate(zip(keys, ("requests/s", "running requests"), strict=True)):
        bars = right.bar([i + 0.35 * offset for i in range(2)], [result[n][key] for n in names], 0.35, label=label)
        right.bar_label(bars, fmt="%.2fx")
    right.axhline(1, color="black", linewidth=0.8)
    right.set(xticks=[0.175, 1.175], ylabel="ours over stock")
    right.set_xticklabels(["pool of two full requests", "ample pool"])
    right.legend()
    shares = {pool_share(result[name]): result[name]["throughput_ratio"] for name in names}
    crossover.plot(list(shares), list(shares.values()), "o-", label="vllm-prune, keep 20%")
    crossover.plot(list(R_KV), list(R_KV.values()), "s--", label="R-KV's port, as published (H100, text)")
    crossover.axhline(1, color="black", linewidth=0.8)
    crossover.set(xlabel="share of all requests' rows that the cache holds", ylabel="requests/s, full cache = 1",
                  ylim=(0, None))  # fmt: skip
    crossover.legend(loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def pool_share(row: dict[str, Any]) -> float:
    """Share of the rows of all requests of a round that the pool holds, at most 1.

    Args:
        row: a pool's result; the tight one has blocks for two full requests, and one that vLLM sets aside.
    """
    return 1.0 if row["blocks"] is None else 2 / row["requests"]


PARTS = ("tight", "ample", "long")


def main(
    rounds: Annotated[int, typer.Option(help="Measured rounds; ratios are medians over them.")] = 5,
    requests: Annotated[int, typer.Option(help="Turns per round.")] = 10,
    tokens: Annotated[int, typer.Option(help="Length of an answer where the pool is tight.")] = 1280,
    short: Annotated[int, typer.Option(help="Length of an answer where it is ample.")] = 256,
    long: Annotated[int, typer.Option(help="Length of the long answer.")] = 4096,
    keep: Annotated[float, typer.Option(help="Share of the prompt's rows that is kept.")] = 0.2,
    rows: Annotated[int, typer.Option(help="Screen height in tokens (28 pixels each).")] = 20,
    cols: Annotated[int, typer.Option(help="Screen width in tokens.")] = 26,
    shape: Annotated[Model, typer.Option(help="7b needs a GPU.")] = Model.small,
    part: Annotated[list[str] | None, typer.Option(help=f"Only these of {', '.join(PARTS)}; may repeat.")] = None,
    save: Annotated[bool, typer.Option(help="Write the result under benchmarks/results/.")] = False,
) -> None:
    """Measure and print; `--save` keeps the result and a plot, and parts left out as an earlier run saved them."""
    if shape is Model.qwen3_vl:
        raise typer.BadParameter("screens are laid out in cells of 28 pixels; choose small or 7b")
    folder, given, prefix = served(shape)
    path = RESULTS / f"{prefix}kv.json"
    result: dict[str, Any] = json.loads(path.read_text()) if part and path.exists() else {}
    with Progress(transient=True) as progress:
        bench = Bench(folder, given, (rows * 28, cols * 28), keep, rounds, progress)
        full = -(-(bench.prompt + tokens) // BLOCK)
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            # One block more: vLLM sets one aside.
            "tight": lambda: bench.pool("tight pool", 2 * full + 1, Load(requests, tokens)),
            "ample": lambda: bench.pool("ample pool", None, Load(max(1, requests // 2), short)),
            "long": lambda: bench.long_answer(long),
        }
        result |= {
            "command": "python -m benchmarks.kv --save",
            "arguments": sys.argv[1:],
            "hardware": hardware(),
            "parameters": parameters(folder),
            "setting": {"screens": SCREENS, "visual_tokens": rows * cols, "keep": keep, "rounds": rounds},
            **{name: measure() for name, measure in measures.items() if name in (part or PARTS)},
        }
    show(result)
    if save:
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        if set(PARTS) <= set(result):
            plot(result, RESULTS / f"{prefix}kv.png")


if __name__ == "__main__":
    typer.run(main)
