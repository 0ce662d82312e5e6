"""Milliseconds that each visual strategy takes to choose, on random features: `python -m benchmarks.strategy_cost`."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid, Modality
from vllm_prune.visual.strategies.base import Context, PixelStrategy
from vllm_prune.visual.strategies.maths import cells_of

FRAME = 256
SIZES = (256, 1024, 2048, 8192)
SHARES = (4, 2)


def grid_of(tokens: int, modality: Modality) -> Grid:
    """One image of `tokens` cells, or a video of frames of 256 cells (at least 4 frames)."""
    frames = 1 if modality == "image" else max(4, tokens // FRAME)
    side = 1 << (tokens // frames).bit_length() // 2
    return Grid(frames, side, tokens // frames // side)


def call(name: str, grid: Grid, count: int, width: int, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """A function that makes strategy `name` choose `count` cells, gather and merge them, and waits until it has."""
    generator = torch.Generator().manual_seed(0)
    strategy = VISUAL.create(name)
    if isinstance(strategy, PixelStrategy):
        pixels = torch.rand(grid.tokens, 4704, generator=generator)
        return lambda: _discard(strategy.select_cells(cells_of(pixels, 4, 3), grid, count, ()))
    tokens = torch.randn(grid.tokens, width, generator=generator).to(device, dtype)
    attention = torch.rand(grid.tokens, generator=generator).to(device)
    context = Context(seed=1, tower_attention=attention, scores=attention, sensitivity=attention, text=tokens[:32])
    return lambda: _discard(strategy.reduce(tokens, grid, count, context).rows(tokens))


def _discard(kept: torch.Tensor) -> None:
    if kept.is_cuda:
        torch.cuda.synchronize(kept.device)


def milliseconds(function: Callable[[], None], repeats: int) -> float:
    """Median time of `repeats` calls, after two calls that do not count."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:]) * 1000


def table(modality: Modality, arguments: argparse.Namespace) -> Table:
    """Measure all strategies for a modality; rows are strategies, columns sizes."""
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    title = f"{modality}, D={arguments.width}, {arguments.dtype}, {arguments.device}, {arguments.threads} thread(s), ms"
    result = Table("strategy", title=title)
    cases = [(m, m // share) for m in arguments.sizes for share in SHARES]
    for m, k in cases:
        result.add_column(f"{m}→{k}", justify="right")
    for name in VISUAL.names():
        if name in ("none", "resize") or modality not in VISUAL.strategy_class(name).modalities:
            continue
        cells = []
        for m, k in cases:
            function = call(name, grid_of(m, modality), k, arguments.width, device, dtype)
            cells.append(f"{milliseconds(function, arguments.repeats):.2f}")
        result.add_row(name, *cells)
    return result


def main() -> None:
    """Print one table per modality."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modality", choices=["image", "video", "both"], default="both")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="tokens before pruning, M")
    parser.add_argument("--width", type=int, default=1024, help="values per token, D")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    modalities: tuple[Modality, ...] = ("image", "video")
    for modality in modalities:
        if arguments.modality in (modality, "both"):
            Console().print(table(modality, arguments))


if __name__ == "__main__":
    main()
