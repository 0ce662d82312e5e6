"""What each visual strategy costs, beside the prefill that pruning saves: `python -m benchmarks.strategy_cost --save`.

Times are of choosing among random features, gathering and merging, on one thread, as the engine's worker has it on two
cores. They are compared with the unpruned prefill of as many tokens by the language model of `random_model`, inside a
server: a prompt of text, so that neither the vision tower nor the processor is part of it. Features are as wide as that
model's. A larger model's prefill grows faster than the cost of choosing, so its shares are smaller.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid, Modality
from vllm_prune.visual.strategies._frames import Frames
from vllm_prune.visual.strategies._trained import LanguageShape, Network, TrainedStrategy
from vllm_prune.visual.strategies.base import Context, PixelStrategy
from vllm_prune.visual.strategies.maths import cells_of

from . import random_model
from .machine import RESULTS, command_line, hardware
from .servers import EAGER, Server

FRAME = 256
PATCHES = 729
"""Of a frame before it is pooled, in LLaVA-OneVision."""
TOKENS = 6144
SHARES = (4, 2)
"""Of the visual tokens, one in so many is kept."""
MODALITIES: tuple[Modality, ...] = ("image", "video")
FILE = "strategy_cost.json"


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
    layers, unpooled = _layers(name, width, device, dtype), None
    if "unpooled" in strategy.needs:
        patches = torch.randn(grid.frames, PATCHES, width, generator=generator).to(device, dtype)
        unpooled = Frames(patches, grid.per_frame)
    context = Context(1, attention, attention, attention, tokens[:32], layers, unpooled)
    return lambda: _discard(strategy.reduce(tokens, grid, count, context).rows(tokens))


def _layers(name: str, width: int, device: torch.device, dtype: torch.dtype) -> Network | None:
    """Random layers of a strategy that has trained ones, with MLPs four times as wide as the model."""
    cls = VISUAL.strategy_class(name)
    if not issubclass(cls, TrainedStrategy):
        return None
    # What the layouts leave open: how many layers there are, and how wide their MLPs.
    wide = (
        "scoring_layers.0.ffn.net.0.bias",
        "reencode_layers.0.core.ffn.net.0.bias",
        "layers.0.mlp.gate_proj.weight",
        "transformer_decoder.layers.0.linear1.bias",
    )
    language = LanguageShape(width, width // 64, max(1, width // 256), frame_patches=PATCHES)
    generator = torch.Generator().manual_seed(1)
    shapes = cls.layout(dict.fromkeys(wide, (4 * width,)), language)
    tensors = {key: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for key, shape in shapes.items()}
    return Network({key: one.to(device, dtype) for key, one in tensors.items()}, language)


def _discard(kept: torch.Tensor) -> None:
    if kept.is_cuda:
        torch.cuda.synchronize(kept.device)


def milliseconds(function: Callable[[], None], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median time of `repeats` calls by a clock of seconds, after two calls that do not count."""
    times = []
    for _ in range(repeats + 2):
        started = clock()
        function()
        times.append(clock() - started)
    return statistics.median(times[2:]) * 1000


def costs(
    tokens: int, width: int, device: str, dtype: str, repeats: int, only: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Milliseconds of every strategy, or of some, modality and share kept; those that choose nothing are left out."""
    where, kind = torch.device(device), getattr(torch, dtype)
    names = [name for name in only or VISUAL.names() if name not in ("none", "resize")]
    cases = [
        (name, modality, share)
        for name in names
        for modality in MODALITIES if modality in VISUAL.strategy_class(name).modalities
        for share in SHARES
    ]  # fmt: skip
    for name, modality, share in track(cases, description="choosing", transient=True):
        function = call(name, grid_of(tokens, modality), tokens // share, width, where, kind)
        yield {"strategy": name, "modality": modality, "keep": 1 / share, "ms": milliseconds(function, repeats)}


def prefill(tokens: int, repeats: int) -> dict[str, Any]:
    """Median milliseconds of an unpruned prompt of so many tokens on a server, and the model's size.

    Every prompt is another one, and one token is decoded.
    """
    folder = random_model.build()
    log = Path(tempfile.mkdtemp(prefix="vllm-prune-cost-")) / "server.log"
    arguments = [*EAGER, "--max-model-len", "8192", "--max-num-seqs", "1", "--no-enable-prefix-caching"]
    times = []
    with Server(folder, "prune", arguments, log=log) as server, httpx.Client(timeout=600, trust_env=False) as client:
        for turn in track(range(repeats + 1), description="prefill", transient=True):
            prompt = random.Random(turn).choices(range(300), k=tokens)
            body = {"model": str(folder), "prompt": prompt, "max_tokens": 1}
            started = time.perf_counter()
            client.post(f"{server.url}/v1/completions", json=body).raise_for_status()
            times.append(time.perf_counter() - started)
    return {"ms": statistics.median(times[1:]) * 1000, "parameters": random_model.parameters(folder)}


def table(rows: list[dict[str, Any]], unpruned: dict[str, Any] | None) -> Table:
    """Rows are strategies and modalities, columns the shares kept."""
    result = Table("strategy", "modality", *(f"{1 / share:.0%} kept" for share in SHARES))
    cells = {(row["strategy"], row["modality"], row["keep"]): _cell(row["ms"], unpruned) for row in rows}
    for name, modality in dict.fromkeys((row["strategy"], row["modality"]) for row in rows):
        result.add_row(name, modality, *(cells[name, modality, 1 / share] for share in SHARES))
    return result


def _cell(ms: float, unpruned: dict[str, Any] | None) -> str:
    return f"{ms:.1f} ms" + (f", {ms / unpruned['ms']:.1%}" if unpruned else "")


def main(
    tokens: Annotated[int, typer.Option(help="Visual tokens before pruning.")] = TOKENS,
    width: Annotated[int, typer.Option(help="Values per visual token.")] = 768,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the features.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="Where strategies run; beside a prefill only on cpu.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    repeats: Annotated[int, typer.Option(help="Calls per figure, of which the median counts.")] = 7,
    strategy: Annotated[
        list[str] | None, typer.Option(help="Only these; saved beside what was measured before in the same way.")
    ] = None,
    save: Annotated[bool, typer.Option(help="Measure the prefill too; write benchmarks/results/.")] = False,
) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    about = {"command": command_line("benchmarks.strategy_cost"), "hardware": hardware(),
             "tokens": tokens, "width": width, "dtype": dtype, "threads": threads, "repeats": repeats}  # fmt: skip
    before = measured_before(about) if save and strategy else None
    unpruned = None if not save else before["prefill"] if before else prefill(tokens, repeats)
    rows = list(costs(tokens, width, device, dtype, repeats, strategy or ()))
    Console().print(table(rows, unpruned))
    if before is not None:
        others = [row for row in before["rows"] if row["strategy"] not in (strategy or ())]
        rows = sorted([*others, *rows], key=lambda row: row["strategy"])
        about["command"] = "; ".join(dict.fromkeys([*before["command"].split("; "), about["command"]]))
    if save:
        text = json.dumps({**about, "prefill": unpruned, "rows": rows}, indent=1)
        (RESULTS / FILE).write_text(text + "\n")


def measured_before(about: Mapping[str, Any]) -> dict[str, Any]:
    """The committed figures.

    Raises:
        typer.BadParameter: they are of another machine, or of other settings.
    """
    result: dict[str, Any] = json.loads((RESULTS / FILE).read_text())
    if different := [key for key, value in about.items() if key != "command" and result[key] != value]:
        raise typer.BadParameter(f"{FILE} differs in {', '.join(different)}; measure all strategies")
    return result


if __name__ == "__main__":
    typer.run(main)
