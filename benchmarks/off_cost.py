"""What our plugin costs a request that asks for nothing: single requests, alternating between two servers.

`python -m benchmarks.off_cost [--save]`; with `--one-row` for a family with one position per token, which vLLM is told
has three equal ones (InternVL in place of Qwen2.5-VL). Latency on a shared machine is noisy, so the processor time that
each server spent is compared as well. Both servers get the same libraries and allocator.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from . import random_internvl, random_model
from .machine import RESULTS, command_line, hardware, quiet_seconds
from .random_internvl import TILE
from .random_model import parameters
from .servers import Server, alike
from .speed.arms import Arm, stock
from .speed.client import ask
from .speed.media import screens
from .speed.meters import processor_seconds
from .speed.workloads import Chat
from .steps import Steps

ARMS = (stock(), Arm("off", "ours"))
WARM = 3
"""Pairs before those that count."""
KINDS = {"stock": "stock", "ours": "prune"}


async def one(server: Server, model: str, arm: Arm, image: str) -> dict[str, float]:
    """Latency and processor time of one request."""
    await asyncio.sleep(quiet_seconds())
    before = processor_seconds(server)
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "what is on the screen?"}]
    chat: Chat = [{"role": "user", "content": content}]
    async with httpx.AsyncClient(timeout=300, trust_env=False) as client:
        answer = await ask(client, server.url, model, chat, 8, arm.pruning)
    return {"latency": answer.seconds, "cpu": processor_seconds(server) - before}


def measure(folder: Path, side: tuple[int, int], pairs: int) -> dict[str, list[dict[str, float]]]:
    """Pairs of requests, each pair the same picture, in turning order."""
    logs = Path(tempfile.mkdtemp(prefix="vllm-prune-off-"))
    arguments = ["--max-model-len", "8192", "--max-num-seqs", "4", "--limit-mm-per-prompt", '{"image": 1, "video": 0}']
    found: dict[str, list[dict[str, float]]] = {arm.name: [] for arm in ARMS}
    with ExitStack() as stack, Steps() as progress:
        progress.say("two servers start")
        servers = {
            arm.name: stack.enter_context(
                Server(folder, KINDS[arm.server], arguments, log=logs / f"{arm.name}.log", environment=alike())
            )
            for arm in ARMS
        }
        names = {name: server.model_name for name, server in servers.items()}
        pictures = screens(side, seed=1)
        progress.begin(pairs + WARM)
        for number in range(pairs + WARM):
            progress.step("a pair of requests")
            picture = next(pictures)
            for arm in ARMS[:: 1 if number % 2 else -1]:
                result = asyncio.run(one(servers[arm.name], names[arm.name], arm, picture))
                if number >= WARM:
                    found[arm.name].append(result)
    return found


def summarise(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Median of stock over off per pair (1 is equal, below 1 is slower), with a 95% bootstrap interval."""
    rng, summary = random.Random(0), {}
    for key in ("latency", "cpu"):
        ratios = [s[key] / o[key] for s, o in zip(found["stock"], found["off"], strict=True)]
        medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
        summary[key] = {"ratio": statistics.median(ratios), "low": medians[50], "high": medians[1950]}
    return summary


def main(
    pairs: Annotated[int, typer.Option(help="Measured pairs of requests.")] = 24,
    rows: Annotated[int, typer.Option(help="Screen height in tokens (28 pixels each).")] = 24,
    cols: Annotated[int, typer.Option(help="Screen width in tokens.")] = 32,
    one_row: Annotated[bool, typer.Option(help="InternVL, a family with one position per token.")] = False,
    save: Annotated[bool, typer.Option(help="Write the result under benchmarks/results/.")] = False,
) -> None:
    """Measure and print; `--save` keeps the result."""
    folder = random_internvl.build() if one_row else random_model.build()
    # A screen of 3 x 2 tiles has six of 256 tokens, and the whole picture as a seventh.
    side, tokens = ((2 * TILE, 3 * TILE), 7 * 256) if one_row else ((rows * 28, cols * 28), rows * cols)
    found = measure(folder, side, pairs)
    result: dict[str, Any] = {
        "command": command_line("benchmarks.off_cost"),
        "hardware": hardware(),
        "parameters": parameters(folder),
        "setting": {"visual_tokens": tokens, "pairs": pairs, "load": os.getloadavg()[0]},
        "stock_over_off": summarise(found),
    }
    print(json.dumps(result["stock_over_off"], indent=1))
    if save:
        RESULTS.mkdir(exist_ok=True)
        name = "off_cost_one_row.json" if one_row else "off_cost.json"
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
