"""Speed of budgets against stock vLLM: both servers run side by side, requests alternate between them.

`python -m benchmarks.speed` writes a table, JSON and a plot under `benchmarks/results/`. Only ratios of
one run are claims; absolute times belong to the machine that the result names.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vllm_prune.cli.host import installed_libraries, preload_list

from .random_model import parameters
from .servers import PRELOAD_AT_START, Server
from .seven_b import Model, served

RESULTS = Path(__file__).parent / "results"
CUT_AFTER = 1
"""Blocks of the vision tower that see every cell, of 8; 4 of a usual tower's 32."""
QUIET_SECONDS = 3.0
"""Pause before a measurement: an engine polls for a while after its last request, on cores that both servers share."""
QUIET_ON_GPU = 0.3


@dataclass(frozen=True)
class Arm:
    """One way to ask: which server, and with what `pruning` field."""

    name: str
    kind: str
    pruning: dict[str, Any] | None


def arms(strategy: str) -> list[Arm]:
    """Stock, ours without a budget, and ours at two budgets, after the vision tower and inside it."""
    kept = [
        Arm(f"keep {keep:g}{note}", "prune", {"visual": {"keep": keep, "strategy": strategy, "options": options}})
        for note, options in (("", {}), (", cut inside the tower", {"where": "tower", "after": CUT_AFTER}))
        for keep in (0.5, 0.25)
    ]
    return [Arm("stock", "stock", None), Arm("keep 1 (off)", "prune", None), *kept]


def screens(side: tuple[int, int], seed: int) -> Iterator[str]:
    """Endless different screenshots as data URLs: a flat page with random blocks, so no cache answers for the tower."""
    rng = np.random.default_rng(seed)
    while True:
        page = np.full((*side, 3), 245, dtype=np.uint8)
        for _ in range(60):
            y, x = int(rng.integers(0, side[0] - 56)), int(rng.integers(0, side[1] - 84))
            page[y : y + 28, x : x + 84] = rng.integers(0, 255, 3)
        data = io.BytesIO()
        Image.fromarray(page).save(data, "PNG")
        yield "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


async def ask(
    client: httpx.AsyncClient, server: Server, model: str, arm: Arm, image: str, tokens: int
) -> dict[str, Any]:
    """One streamed request; returns seconds to the first token, seconds in all, and the usage."""
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "what is on the screen?"}]
    body: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": content}], "max_tokens": tokens, "temperature": 0,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    if arm.pruning is not None:
        body["pruning"] = arm.pruning
    started, first, usage = time.perf_counter(), None, {}
    async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{arm.name}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            # The opening chunk carries the role alone; the first token comes with the next.
            if first is None and chunk["choices"] and chunk["choices"][0]["delta"].get("role") is None:
                first = time.perf_counter() - started
    return {"ttft": first, "seconds": time.perf_counter() - started, "usage": usage}


def quiet_seconds() -> float:
    """Pause before a measurement."""
    import torch

    return QUIET_ON_GPU if torch.cuda.is_available() else QUIET_SECONDS


async def round_of(server: Server, model: str, arm: Arm, images: list[str], concurrency: int) -> dict[str, float]:
    """TTFT of one request alone, then requests per second under load."""
    await asyncio.sleep(quiet_seconds())
    limits = httpx.Limits(max_connections=concurrency + 1)
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:
        alone = await ask(client, server, model, arm, images[0], 1)
        gate = asyncio.Semaphore(concurrency)

        async def guarded(image: str) -> dict[str, Any]:
            async with gate:
                return await ask(client, server, model, arm, image, 8)

        started = time.perf_counter()
        answers = await asyncio.gather(*(guarded(image) for image in images[1:]))
        seconds = time.perf_counter() - started
    prompt = answers[0]["usage"]["prompt_tokens"]
    return {"ttft": alone["ttft"], "requests_per_second": len(answers) / seconds, "prompt_tokens": prompt}


def measure(
    folder: Path, given: list[str], side: tuple[int, int], rounds: int, requests: int, concurrency: int, strategy: str
) -> dict[str, list[dict[str, float]]]:
    """Interleaved rounds over all arms; the order turns from round to round."""
    chosen = arms(strategy)
    logs = Path(tempfile.mkdtemp(prefix="vllm-prune-speed-"))
    arguments = [
        "--max-model-len",
        "8192",
        "--max-num-seqs",
        str(concurrency),
        "--limit-mm-per-prompt",
        '{"image": 1, "video": 0}',
        *given,
    ]
    found: dict[str, list[dict[str, float]]] = {arm.name: [] for arm in chosen}
    with ExitStack() as stack, Progress(transient=True) as progress:
        task = progress.add_task("starting two servers", total=(rounds + 1) * len(chosen))
        # Ours preloads these by itself; the comparison is not about OpenMP runtimes.
        preloaded = {"LD_PRELOAD": ":".join(preload_list(PRELOAD_AT_START, installed_libraries()))}
        servers = {
            kind: stack.enter_context(Server(folder, kind, arguments, log=logs / f"{kind}.log", environment=preloaded))
            for kind in ("stock", "prune")
        }
        names = {kind: server.model_name for kind, server in servers.items()}
        source = screens(side, seed=0)
        for number in range(rounds + 1):
            turn = number % len(chosen)
            # All arms of a round see the same pictures; each server has seen none of them before, except
            # that ours sees them once per budget, which its caches keep apart.
            pictures = [next(source) for _ in range(requests + 1)]
            for arm in chosen[turn:] + chosen[:turn]:
                progress.update(task, advance=1, description=f"round {number}: {arm.name}")
                result = asyncio.run(round_of(servers[arm.kind], names[arm.kind], arm, pictures, concurrency))
                if number:  # the first round warms up
                    found[arm.name].append(result)
    return found


def summarise(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Medians, and medians of the per-round ratios against stock."""
    rows = []
    for name, results in found.items():
        row: dict[str, Any] = {"arm": name, "prompt_tokens": int(results[0]["prompt_tokens"])}
        for key in ("ttft", "requests_per_second"):
            row[key] = statistics.median(result[key] for result in results)
        pairs = list(zip(found["stock"], results, strict=True))
        row["ttft_ratio"] = statistics.median(s["ttft"] / r["ttft"] for s, r in pairs)
        row["throughput_ratio"] = statistics.median(
            r["requests_per_second"] / s["requests_per_second"] for s, r in pairs
        )
        rows.append(row)
    return rows


def hardware() -> dict[str, Any]:
    """Machine and versions of a result."""
    from importlib.metadata import version

    import torch

    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores of {cpu}"
    import vllm

    return {"device": device, "python": platform.python_version(), "torch": torch.__version__, "vllm": vllm.__version__,
            "vllm-prune": version("vllm-prune")}  # fmt: skip


def show(rows: list[dict[str, Any]], note: str) -> None:
    """Print the table."""
    table = Table("arm", "prompt tokens", "TTFT", "TTFT vs stock", "requests/s", "throughput vs stock", title=note)
    for row in rows:
        table.add_row(
            row["arm"], str(row["prompt_tokens"]), f"{row['ttft']:.3f} s", f"{row['ttft_ratio']:.2f}x",
            f"{row['requests_per_second']:.2f}", f"{row['throughput_ratio']:.2f}x",
        )  # fmt: skip
    Console(width=120).print(table)


def main(
    rounds: Annotated[int, typer.Option(help="Measured rounds; medians are taken over them.")] = 7,
    requests: Annotated[int, typer.Option(help="Requests per round under load.")] = 8,
    concurrency: Annotated[int, typer.Option(help="Requests in flight under load.")] = 4,
    quick: Annotated[bool, typer.Option(help="Five rounds of four requests.")] = False,
    strategy: Annotated[str, typer.Option(help="Strategy of the pruned arms.")] = "divprune",
    rows: Annotated[int, typer.Option(help="Screen height in tokens (28 pixels each).")] = 32,
    cols: Annotated[int, typer.Option(help="Screen width in tokens.")] = 48,
    shape: Annotated[Model, typer.Option(help="7b needs a GPU.")] = Model.small,
    save: Annotated[bool, typer.Option(help="Write the result under benchmarks/results/.")] = False,
) -> None:
    """Measure and print; `--save` keeps the result."""
    if quick:
        rounds, requests = 5, 4
    folder, given, prefix = served(shape)
    found = measure(folder, given, (rows * 28, cols * 28), rounds, requests, concurrency, strategy)
    result = {
        "command": "python -m benchmarks.speed " + " ".join(sys.argv[1:]),
        "hardware": hardware(),
        "parameters": parameters(folder),
        "setting": {"visual_tokens": rows * cols, "rounds": rounds, "requests": requests, "concurrency": concurrency,
                    "strategy": strategy},
        "rows": summarise(found),
        "rounds": found,
    }  # fmt: skip
    show(result["rows"], f"{result['parameters'] / 1e6:.0f}M parameters, {rows * cols} visual tokens, {strategy}")
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{prefix}speed.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
