"""Accuracy of the demo model over tasks, strategies and budgets: `python -m benchmarks.quality --save`.

Visual budgets on every image task and on video, KV budgets on the image tasks, and target coverage without a model.
Writes JSON, CSV and a plot under `benchmarks/results/`. A task that the committed model does not answer unpruned (see
`demo_model/evaluation.json`) is left out: its answers cannot say what pruning loses.

With `--strategy` only those are measured, and with `--save` their rows take the place of what the committed results say
of them: `--strategy kv:gui_kv`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from vllm_prune.catalogue import LAYER_GROUPS
from vllm_prune.sweep import Arm, Cell, Sample, kv_arms, run, visual_arms
from vllm_prune.sweep.client import Client
from vllm_prune.sweep.coverage import Target, coverage, pixel_strategies
from vllm_prune.sweep.graders import Expectation
from vllm_prune.sweep.report import rows, table, write
from vllm_prune.sweep.statistics import paired

from .machine import RESULTS, command_line, hardware
from .servers import Server
from .tasks import ENLARGED, GENERATORS, sample
from .tasks import Sample as Generated
from .tasks.draw import CELL

DEMO = Path(__file__).parent / "demo_model"
CHECKPOINT = DEMO / "checkpoint"
KEEPS = (0.5, 0.25, 0.1)
KV_KEEPS = (0.4, 0.2, 0.1, 0.05)
GROUPED = "kv: {layer_groups: [2]}\n"
"""Configuration of the server that has two groups of layers, for the strategies that need them."""
INSIDE = "@tower"
"""Behind a strategy's name: its choice is made inside the vision tower."""
MEMBERS = "@members"
"""Behind a strategy's name: what it merges carries the positions of eight members."""
VARIANTS: dict[str, dict[str, Any]] = {INSIDE: {"where": "tower"}, MEMBERS: {"positions": 8}}
"""Options by what stands behind a strategy's name; of those that have such an option."""
FILMS = ("clips", "video", "enlarged_clips")
"""Tasks whose samples are videos."""
LARGE = ("detail",)
"""Tasks of up to 1,800 visual tokens, which take as long as all others together."""
TASKS = {**GENERATORS, **ENLARGED}
PARTS = ("none", "visual", "video", "kv")
"""Order of the rows."""
ANSWERED = 0.7
"""Unpruned accuracy below which a task says nothing about pruning."""
MARGIN = 0.1
"""By how much the default strategy has to beat random: the lower 95% bound of the paired difference in accuracy."""

AFTER_EVICTION = {"structured_outputs": {"regex": "\n[A-Za-z0-9]+"}, "max_tokens": 8}
"""The first token of an answer comes from the full prefill, before anything is evicted. These requests begin with a
line break, so that the answer itself is decided on the evicted cache."""


def screens(n: int, extra: dict[str, Any] | None = None) -> list[Sample]:
    """The first `n` held-out screens, grouped by what they ask.

    Args:
        n: samples.
        extra: further fields of the requests.
    """
    found = (sample("test", i) for i in range(n))
    return [request_of(one, f"test-{i}", one.kind, extra) for i, one in enumerate(found)]


def held_out(tasks: Sequence[str], n: int, extra: dict[str, Any] | None = None) -> list[Sample]:
    """The first `n` held-out samples of each task, a third as many of `LARGE`, grouped by task."""
    return [
        request_of(TASKS[task]("test", i), f"{task}-{i}", task, extra)
        for task in tasks
        for i in track(range(n // 3 if task in LARGE else n), description=f"drawing {task}", transient=True)
    ]


def request_of(one: Generated, name: str, group: str, extra: dict[str, Any] | None = None) -> Sample:
    """A generated sample as a request with its answer."""
    request = {"messages": one.to_chat(), "max_tokens": 6, **(extra or {})}
    return Sample(name, request, Expectation(one.answer, "exact", box_of(one)), group)


def box_of(one: Generated) -> tuple[float, float, float, float]:
    """Pixels of the first cell that holds a generated sample's answer, in its picture."""
    _, _, row, col = one.targets[0]
    return float(col * CELL), float(row * CELL), float((col + 1) * CELL), float((row + 1) * CELL)


def target_coverage(n: int, keeps: Sequence[float] = KEEPS, task: str = "screens") -> list[dict[str, Any]]:
    """Coverage of the first `n` held-out samples of an image task, by every strategy that pixels are enough for.

    The picture is the one that holds the answer; strategies that compare pictures see it alone.
    """
    drawn = (GENERATORS[task]("test", i) for i in track(range(n), description="coverage", transient=True))
    targets = (Target(one.media[one.targets[0][0]].frames[0], box_of(one)) for one in drawn)
    return coverage(targets, pixel_strategies(), keeps)


def answered(path: Path = DEMO / "evaluation.json") -> list[str]:
    """Tasks that the committed model answers unpruned."""
    found = json.loads(path.read_text())["tasks"]
    return [task for task in GENERATORS if found.get(task, {"accuracy": 0.0})["accuracy"] >= ANSWERED]


def beats_random(chosen: Sequence[bool], random: Sequence[bool], margin: float = MARGIN) -> bool:
    """Whether answers under a strategy are better than under random by more than `margin`, with 95% confidence."""
    return paired(chosen, random)[1] > margin


def strategies(client: Client, modality: str) -> list[str]:
    """What the server has for images or videos, with the variants of each."""
    entries = [one for one in client.get("/v1/pruning/strategies")["data"] if modality in one["modality"]]
    variants = [
        f"{one['name']}{variant}"
        for variant, options in VARIANTS.items()
        for one in entries
        if options.keys() <= one["options"].get("properties", {}).keys()
    ]
    return [one["name"] for one in entries if one["name"] != "none"] + variants


def arms(names: Sequence[str], keeps: Sequence[float]) -> list[Arm]:
    """Every strategy and the baselines at every ratio; names as in `strategies`."""
    plain, variants = [name for name in names if "@" not in name], [name for name in names if "@" in name]
    cells = [(name, keep) for name in variants for keep in sorted(set(keeps), reverse=True)]
    return visual_arms(plain, keeps) + [_variant(name, keep) for name, keep in cells]


def _variant(name: str, keep: float) -> Arm:
    strategy, at, variant = name.partition("@")
    budget = {"strategy": strategy, "keep": keep, "options": VARIANTS[at + variant]}
    return Arm("visual", name, keep, json.dumps({"visual": budget, "kv": None}))


def kv_strategies(client: Client, layered: bool = False) -> list[str]:
    """What the server has for the cache: what one group of layers is enough for, or what needs several."""
    entries = [one for one in client.get("/v1/pruning/strategies")["data"] if one["part"] == "kv"]
    return [one["name"] for one in entries if (LAYER_GROUPS in one["needs"]) == layered]


def repeated(client: Client, model: str, samples: Sequence[Sample], arm: Arm, before: Cell) -> dict[str, Any]:
    """Ask one arm again, without the stored cells; how many answers differ."""
    again = run(client, model, samples, [arm])[1]
    texts = zip(before.answers, again.answers, strict=True)
    return {
        "arm": arm.name,
        "accuracies": [sum(answer.right for answer in cell.answers) / len(samples) for cell in (before, again)],
        "texts_that_differ": sum(one.text != other.text for one, other in texts),
    }


@dataclass
class Table:
    """Rows of one half of the measurement: images, videos or the cache."""

    title: str
    part: str
    samples: list[Sample]
    cells: list[Cell]

    def rows(self) -> list[dict[str, Any]]:
        """Rows whose part tells the halves apart, each with its own unpruned arm."""
        found = rows(self.cells, self.samples)
        for row in found:
            row["part"] = "none" if row["part"] == "none" and self.part == "visual" else self.part
        return found


def chosen(names: Sequence[str], part: str, only: Sequence[str]) -> list[str]:
    """The strategies of a part that are to be measured: all, or those that `only` names as PART:NAME."""
    return [name for name in names if not only or f"{part}:{name}" in only]


def measure(
    client: Client, model: str, tasks: Sequence[str], n: int, store: Path | None, only: Sequence[str] = ()
) -> list[Table]:
    """Ask images, then videos, then the cache; of each part everything, or what `only` names."""
    images, films = ([task for task in tasks if (task in FILMS) is moving] for moving in (False, True))
    found = []
    if names := chosen(strategies(client, "image"), "visual", only):
        asked = held_out(images, n)
        cells = run(client, model, asked, arms(names, KEEPS), store)
        found.append(Table("visual tokens of images", "visual", asked, cells))
    if films and (names := chosen(strategies(client, "video"), "video", only)):
        asked = held_out(films, n)
        cells = run(client, model, asked, arms(names, KEEPS), store)
        found.append(Table("visual tokens of videos", "video", asked, cells))
    if (names := chosen(kv_strategies(client), "kv", only)) or chosen(kv_strategies(client, True), "kv", only):
        asked = held_out(images, n, AFTER_EVICTION)
        cells = run(client, model, asked, kv_arms(names, KV_KEEPS), store)
        found.append(Table("KV, answers after a line break", "kv", asked, cells))
    return found


def measure_layered(
    client: Client, model: str, tables: Sequence[Table], store: Path | None, only: Sequence[str] = ()
) -> None:
    """Ask the table of the cache by the strategies that need groups of layers, on a server that has them."""
    names = chosen(kv_strategies(client, True), "kv", only)
    for one in tables:
        if names and one.part == "kv":
            before = {cell.arm for cell in one.cells}
            cells = run(client, model, one.samples, kv_arms(names, KV_KEEPS), store)
            one.cells += [cell for cell in cells if cell.arm not in before]


def replaced(
    committed: dict[str, Any], measured: Sequence[dict[str, Any]], only: Sequence[str], command: str
) -> dict[str, Any]:
    """Committed results in which the rows of some strategies are those of a later run.

    Args:
        committed: as in `quality.json`.
        measured: rows of the later run; those of baselines, which it asks as well, are left out.
        only: the strategies, as PART:NAME.
        command: of the later run.

    Raises:
        ValueError: one of them was not measured, or the later run asked other numbers of samples.
    """
    fresh = [row for row in measured if f"{row['part']}:{row['strategy']}" in only]
    if missing := set(only) - {f"{row['part']}:{row['strategy']}" for row in fresh}:
        raise ValueError(f"no rows of {', '.join(sorted(missing))}; names are PART:NAME, PART is visual, video or kv")
    counts = {(row["part"], row["group"]): row["n"] for row in committed["rows"] if row["n"]}
    for row in fresh:
        if row["n"] and row["n"] != counts.get((row["part"], row["group"])):
            raise ValueError(f"{row['n']} samples of {row['part']} {row['group']}, committed results have others")
    kept = [row for row in committed["rows"] if f"{row['part']}:{row['strategy']}" not in only]
    later = dict.fromkeys(only, command)
    rows_in_order = sorted([*kept, *fresh], key=lambda row: (PARTS.index(row["part"]), row["strategy"]))
    return {**committed, "rows": rows_in_order, "later": {**committed.get("later", {}), **later}}


def main(
    n: Annotated[int, typer.Option(help="Held-out samples of each task, of large ones a third.")] = 60,
    task: Annotated[
        list[str] | None, typer.Option(help="Tasks, repeatable; those the model answers if absent.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 is several times faster where bfloat16 is emulated.")] = "float32",
    store: Annotated[Path | None, typer.Option(help="Folder of finished cells, to go on from.")] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help="Measure these alone, repeatable: visual:NAME, video:NAME or kv:NAME.")
    ] = None,
    save: Annotated[bool, typer.Option(help="Write quality.json, .csv and .png under benchmarks/results/.")] = False,
) -> None:
    """Measure and print."""
    console, tasks = Console(width=150), task or answered()
    log = Path(tempfile.mkdtemp(prefix="vllm-prune-quality-")) / "server.log"
    arguments = ["--max-num-seqs", "16", "--dtype", dtype]
    with Server(CHECKPOINT, "prune", arguments, log=log) as server:
        client, model = Client(server.url, concurrency=8), server.model_name
        tables = measure(client, model, tasks, n, store, strategy or ())
        again = None if strategy else _again(client, model, tables[0])
    config = log.with_name("grouped.yaml")
    config.write_text(GROUPED)
    with Server(CHECKPOINT, "prune", arguments, config=config, log=log.with_name("grouped.log")) as server:
        measure_layered(Client(server.url, concurrency=8), server.model_name, tables, store, strategy or ())
    if strategy:
        _finish(console, tables, strategy, n, save)
        return
    about = {
        "command": command_line("benchmarks.quality"), "hardware": hardware(), "samples": n,
        "dtype": dtype, "tasks": list(tasks), "repeated": again,
        "coverage": {name: target_coverage(n, task=name) for name in GENERATORS if name not in FILMS},
    }  # fmt: skip
    for one in tables:
        console.print(table(one.rows(), f"{one.title}, {n} samples of each task"))
    console.print(again)
    if save:
        write(RESULTS, [row for one in tables for row in one.rows()], about, "quality")


def _again(client: Client, model: str, images: Table) -> dict[str, Any]:
    """Half of the visual tokens of images by `divprune`, a second time."""
    before = next(cell for cell in images.cells if (cell.arm.strategy, cell.arm.keep) == ("divprune", 0.5))
    return repeated(client, model, images.samples, before.arm, before)


def _finish(console: Console, tables: Sequence[Table], only: Sequence[str], n: int, save: bool) -> None:
    """Print what was measured of some strategies, and put it among the committed results."""
    for one in tables:
        console.print(table(one.rows(), f"{one.title}, {n} samples of each task"))
    if save:
        committed = json.loads((RESULTS / "quality.json").read_text())
        command = command_line("benchmarks.quality")
        about = replaced(committed, [row for one in tables for row in one.rows()], only, command)
        write(RESULTS, about.pop("rows"), about, "quality")


if __name__ == "__main__":
    typer.run(main)
