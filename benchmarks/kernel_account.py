"""Which steps of choosing and compacting would gain by a kernel of their own: `python -m benchmarks.kernel_account`.

Arithmetic for an H100, without one: kernels and bytes of the code as it is, counted on the meta device by `traffic`,
beside the least bytes that the step could move, and the least time of the request that it belongs to (`speed.bound`).
A step takes at least what its bytes take, and at least what launching its kernels takes. The request's time is a floor,
so shares are upper bounds: what is small here is small. Nothing in this module is a measurement.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vllm_prune.budget.kv import KvSpec
from vllm_prune.catalogue import KV, VISUAL
from vllm_prune.grid import Grid
from vllm_prune.kv.cache import StridedRows
from vllm_prune.kv.cached_request import CachedRequest
from vllm_prune.kv.commands import Compaction
from vllm_prune.kv.compaction import Compactor
from vllm_prune.kv.group_budgets import ONE_GROUP, GroupBudgets
from vllm_prune.visual.strategies import vidcom2
from vllm_prune.visual.strategies.base import Context
from vllm_prune.visual.strategies.maths import diversity

from .machine import RESULTS, command_line
from .shapes import EIGHT_B, SEVEN_B, Family, Shape
from .speed.bound import PATCHES, Request, Seconds, seconds
from .speed.micro import Speeds
from .traffic import Counting, Traffic, meta

H100 = Speeds(989e12, 3.35e12, "H100", "bfloat16")
"""Published peaks: dense bfloat16 operations and bytes per second."""
LAUNCH = 5e-6
"""Seconds from one kernel to the next where PyTorch launches them one by one; assumed."""
DEPENDENT_STEP = 1.5e-6
"""Seconds of a step inside a kernel that reduces what it has read and reads what that names; assumed."""
PAYS = 0.02
"""Share of a request above its floor from which on a step deserves a kernel."""
ANSWER, BATCH, BLOCK, WINDOW = 32, 8, 16, 8
KV_KEEP = "0.2"


@dataclass(frozen=True)
class Media:
    """What a request shows.

    Attributes:
        name: for the table.
        items: of it, all alike.
        grid: of each.
    """

    name: str
    items: int
    grid: Grid


MEDIA = (
    Media("video of 6,144", 1, Grid(24, 16, 16)),
    Media("video of 16,384", 1, Grid(64, 16, 16)),
    Media("5 screenshots of 1,280", 5, Grid(1, 32, 40)),
)
MODELS = {"Qwen2.5-VL-7B": SEVEN_B, "Qwen3-VL-8B": EIGHT_B}


@dataclass(frozen=True)
class Entry:
    """A step of one request.

    Attributes:
        traffic: of the code as it is.
        floor: the least bytes.
        request: least seconds of the request.
        launches: the fewest kernels.
    """

    traffic: Traffic
    floor: int
    request: float
    launches: int = 1

    @property
    def seconds(self) -> float:
        """Least time of the step as it is."""
        steps = self.traffic.steps * DEPENDENT_STEP
        return max(self.traffic.bytes / H100.bytes, self.traffic.kernels * LAUNCH) + steps

    @property
    def floor_seconds(self) -> float:
        """Least time of the fewest kernels for all of it."""
        return max(self.floor / H100.bytes, self.launches * LAUNCH)

    @property
    def gain(self) -> float:
        """Share of the request that they could save at most."""
        return max(0.0, self.seconds - self.floor_seconds) / self.request


@dataclass(frozen=True)
class Step:
    """A step that a kernel could do.

    Attributes:
        name: for the table.
        count: what it takes for a model and media; None where it does not take part.
        kernel: what the tree has for it.
    """

    name: str
    count: Callable[[Shape, Media], Entry | None]
    kernel: str


def least(shape: Shape, media: Media, keep: float, rows: float = 1.0) -> Seconds:
    """Least time of a request's parts."""
    frames = (PATCHES * media.grid.per_frame,) * media.grid.frames * media.items
    return seconds(shape, Request(frames, 32, ANSWER, keep, rows=rows), H100, BATCH)


def choice(strategy: str, keep: float, on_gpu: bool = True) -> Callable[[Shape, Media], Entry | None]:
    """A visual strategy's choice for every item; the least is to read each feature and write each kept index once."""

    def count(shape: Shape, media: Media) -> Entry | None:
        modality = "image" if media.grid.frames == 1 else "video"
        if modality not in VISUAL.strategy_class(strategy).modalities:
            return None
        traffic, kept = Traffic(), int(keep * media.grid.tokens)
        with as_on_gpu(traffic, on_gpu), Counting() as counting:
            VISUAL.create(strategy).reduce(
                meta(media.grid.tokens, shape.width), media.grid, kept, Context(), _per_frame(shape, media.grid, kept)
            )
        traffic.add(counting.traffic.bytes, counting.traffic.kernels)
        floor = media.items * (media.grid.tokens * shape.width * 2 + 8 * kept)
        return Entry(traffic.times(media.items), floor, least(shape, media, keep).total)

    return count


def _per_frame(shape: Shape, grid: Grid, kept: int) -> list[int] | None:
    if shape.family is Family.qwen2_5_vl or grid.frames == 1:
        return None
    return [kept // grid.frames + (t < kept % grid.frames) for t in range(grid.frames)]


@contextmanager
def as_on_gpu(traffic: Traffic, on_gpu: bool) -> Iterator[None]:
    """The greedy steps as `maths.kernels` does them on a GPU, and even shares, which the meta device cannot run."""
    kernel, launches, shares = diversity.gains_in_one_launch, diversity.launches_once, vidcom2._shares

    def in_one_launch(table: Tensor, lonely: Tensor, first: Tensor, steps: int, top: float) -> Tensor:
        # A row of distances per step and segment; segments are read and written once.
        traffic.add(4 * lonely.numel() * (steps + 2), steps=steps)
        return torch.empty_like(lonely)

    def even(to_item: Tensor, keep: float) -> list[int]:
        # The mean of each frame, then a dozen operators on one value of each.
        traffic.add(to_item.numel() * 2, kernels=12)
        return [round(keep * to_item.shape[1])] * len(to_item)

    vidcom2._shares = even
    if on_gpu:
        diversity.gains_in_one_launch = in_one_launch
        diversity.launches_once = lambda units, n: n <= diversity.ONE_LAUNCH
    try:
        yield
    finally:
        diversity.gains_in_one_launch, diversity.launches_once, vidcom2._shares = kernel, launches, shares


class OnPaper(StridedRows):
    """A paged cache whose two kernels are counted instead of run."""

    def __init__(self, layer: Any, traffic: Traffic) -> None:
        super().__init__(layer)
        self.traffic = traffic

    def logits(self, queries: Tensor, slots: Tensor, scale: float) -> Callable[[slice, slice], Tensor] | None:
        """See `CacheRows`."""
        heads, dim, rows = len(self.heads), self.cache.shape[3] // 2, len(slots)
        group = queries.shape[1] // heads

        def logits(some: slice, window: slice) -> Tensor:
            out = meta(len(range(heads)[some]), group, len(range(len(queries))[window]), rows, dtype=torch.float32)
            self.traffic.add(out.shape[0] * rows * dim * 2 + out.numel() * 4)
            return out

        return logits

    def move(self, kept: Tensor, keys: Tensor, values: Tensor | None, source: Any, target: Any) -> None:
        """See `CacheRows`."""
        self.traffic.add(2 * kept.numel() * self.cache.shape[3] * 2)


def compaction(kernels: bool) -> Callable[[Shape, Media], Entry | None]:
    """Scoring by `snapkv` and compacting all layers; the least reads all keys, and reads and writes the kept rows."""

    def count(shape: Shape, media: Media) -> Entry | None:
        rows = media.items * media.grid.tokens + 32
        spec = KvSpec("snapkv", '{"pooling":5,"mode":"avg"}', keep=KV_KEEP, window=WINDOW)
        kept = spec.count(rows)
        # What is done once for a command is counted once: two layers less one are one more layer.
        one, two = (_compacted(shape, rows, spec, kernels, layers) for layers in (1, 2))
        more = shape.layers - 1
        total = Traffic(one.kernels + more * (two.kernels - one.kernels), one.bytes + more * (two.bytes - one.bytes))
        moved = shape.layers * shape.kv_heads * shape.head * 2 * (rows + 4 * kept)
        # Scores of a layer are complete before its first row moves.
        return Entry(total, moved, least(shape, media, 1.0, float(KV_KEEP)).total, 2 * shape.layers)

    return count


def _compacted(shape: Shape, rows: int, spec: KvSpec, kernels: bool, layers: int) -> Traffic:
    blocks = -(-rows // BLOCK)
    cache = meta(2 * blocks, shape.kv_heads, BLOCK, 2 * shape.head)
    layer = SimpleNamespace(kv_cache=cache, impl=SimpleNamespace(scale=1.0))
    traffic = Traffic()
    access = OnPaper(layer, traffic) if kernels else StridedRows(layer)
    queries = meta(WINDOW, shape.heads, shape.head, dtype=torch.float32)
    store: Any = SimpleNamespace(queries=lambda index, slots: queries)
    compactor = Compactor([layer] * layers, [access] * layers, store, None, None, BLOCK)
    budgets = GroupBudgets(spec, rows, ONE_GROUP, (spec.count(rows),))
    media = torch.zeros(rows, dtype=torch.int64, device="meta")
    request = CachedRequest(budgets, KV.create("snapkv"), media, (), 0, list(range(WINDOW)))
    kept = spec.count(rows)
    command = Compaction("one", rows, kept, 0, tuple(range(blocks)), tuple(range(blocks, blocks - -kept // BLOCK)))
    with Counting() as counting:
        compactor.run(command, request)
    traffic.add(counting.traffic.bytes, counting.traffic.kernels)
    return traffic


def ring(shape: Shape, media: Media) -> Entry | None:
    """Queries of one decode step that go to the window's ring: one kernel per layer, beside the step's least time."""
    row = shape.heads * shape.head * 2
    moved = BATCH * 2 * row * shape.layers
    step = least(shape, media, 1.0, float(KV_KEEP)).decode / (ANSWER - 1) * BATCH
    # Queries of a layer are there when it runs, and not before.
    return Entry(Traffic(shape.layers, moved), moved, step, shape.layers)


STEPS = (
    Step("cosine to the frame before, then the K highest (`evs`, 25%)", choice("evs", 0.25), "none"),
    Step("distance to the means, then the K farthest (`vidcom2`, 25%)", choice("vidcom2", 0.25), "none"),
    Step("greedy max-min in segments (`divprune`, 25%), by steps", choice("divprune", 0.25, False), "torch, on CPUs"),
    Step("the same, all steps in one launch", choice("divprune", 0.25), "`max_min_gains`"),
    Step("greedy max-min over the item (`divprune`, 10%), in blocks", choice("divprune", 0.1, False), "torch, on CPUs"),
    Step("the same, in one launch up to 8,192 visual tokens", choice("divprune", 0.1), "`max_min_gains`"),
    Step("window scores and compaction (`snapkv`, 20%), gathered", compaction(kernels=False), "torch, on CPUs"),
    Step("the same over paged keys, rows moved in place", compaction(kernels=True), "`window_logits`, `compact`"),
    Step("queries to the window's ring, one decode step", ring, "`index_copy_`; none in plain graphs"),
)


def entries() -> Iterator[tuple[Step, str, Media, Entry]]:
    """Every step with every model and media that it takes part in."""
    for step in STEPS:
        for model, shape in MODELS.items():
            for media in MEDIA:
                if (entry := step.count(shape, media)) is not None:
                    yield step, model, media, entry


def as_row(step: Step, model: str, media: Media, entry: Entry) -> dict[str, Any]:
    """An entry as JSON."""
    return {
        "step": step.name, "kernel": step.kernel, "model": model, "media": media.name,
        "kernels": entry.traffic.kernels, "bytes": entry.traffic.bytes, "steps": entry.traffic.steps,
        "seconds": entry.seconds, "floor_bytes": entry.floor, "floor_kernels": entry.launches,
        "floor_seconds": entry.floor_seconds, "request_seconds": entry.request, "gain": entry.gain,
        "pays": entry.gain > PAYS,
    }  # fmt: skip


def main(save: Annotated[bool, typer.Option(help="Write benchmarks/results/kernel_account.json.")] = False) -> None:
    """Print the account; `--save` keeps it."""
    rows = [as_row(*one) for one in entries()]
    table = Table("step", "model", "media", "kernels", "MB", "ms", "floor MB", "floor ms", "of the request, at most")
    for row in rows:
        table.add_row(
            row["step"], row["model"], row["media"], f"{row['kernels']:,}", f"{row['bytes'] / 1e6:,.1f}",
            f"{row['seconds'] * 1e3:.2f}", f"{row['floor_bytes'] / 1e6:,.1f}", f"{row['floor_seconds'] * 1e3:.3f}",
            f"{row['gain']:.1%}" + (", pays" if row["pays"] else ""),
        )  # fmt: skip
    Console(width=180).print(table)
    if save:
        about = {"command": command_line("benchmarks.kernel_account"), "torch": torch.__version__,
                 "bytes_per_second": H100.bytes, "operations_per_second": H100.flops, "launch_seconds": LAUNCH,
                 "dependent_step_seconds": DEPENDENT_STEP, "pays_above": PAYS, "in_flight": BATCH,
                 "answer_tokens": ANSWER}  # fmt: skip
        (RESULTS / "kernel_account.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
