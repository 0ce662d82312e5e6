"""Accuracy of the trained scorer: `python -m benchmarks.stts.evaluate --n 500 --videos 200 --save`.

Held-out pictures and videos at several budgets, by `stts`, by every untrained strategy, and by scorers of other runs
(ablations, `--run NAME=FOLDER`). One transformers model answers for all of them; models that were trained along with
their scorers answer for themselves (`--model NAME=FOLDER`). That the engine keeps and answers the same is shown by
`benchmarks.stts.agreement`. Ratios are of the item's cells; intervals are of paired differences.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vllm_prune.sweep.statistics import paired, wilson
from vllm_prune.visual.frontend.frame_split import frame_counts
from vllm_prune.visual.scorers.stts import files
from vllm_prune.visual.scorers.stts.training import Pruned, PrunedTower

from ..machine import RESULTS, command_line, hardware
from ..tasks import Sample
from .arms import NOTHING, Case, choose_per_frame, load_model, untrained
from .train import CHECKPOINT, held_out

KEEPS = (0.7, 0.5, 0.3, 0.2)
ANSWERS = dict[tuple[str, float], dict[int, bool]]
"""Right or wrong by arm and ratio, per sample that the arm handles."""


def ask(
    checkpoint: Path, scorers: dict[str, Path], models: dict[str, Path], samples: list[Sample], keeps: Sequence[float]
) -> ANSWERS:
    """All answers: of the checkpoint by all arms, and of other models by their own scorers."""
    answers = _ask(checkpoint, scorers, samples, keeps, untrained())
    for name, folder in models.items():
        own = _ask(folder, {"stts": folder / files.PLACE}, samples, keeps, ())
        answers |= {(f"{arm}, {name}", keep): found for (arm, keep), found in own.items()}
    return answers


def _ask(
    checkpoint: Path, scorers: dict[str, Path], samples: list[Sample], keeps: Sequence[float], others: Iterable[str]
) -> ANSWERS:
    model, words = load_model(checkpoint)
    towers = {name: PrunedTower(model.model.visual, files.load(path)) for name, path in scorers.items()}
    names = list(others)
    answers: ANSWERS = defaultdict(dict)
    with torch.no_grad():
        for number, one in enumerate(track(samples, description="asking", transient=True)):
            case = Case(model, words, one, number)
            everything = torch.arange(case.grid.tokens)
            whole = Pruned(case.features, everything, *NOTHING)
            [answers["unpruned", 1.0][number]] = case.right([whole])
            for keep in keeps:
                cuts = _cuts(case, towers, names, max(1, int(keep * case.grid.tokens)))
                for name, right in zip(cuts, case.right(list(cuts.values())), strict=True):
                    answers[name, keep][number] = right
    return answers


def _cuts(case: Case, towers: dict[str, PrunedTower], names: Iterable[str], count: int) -> dict[str, Pruned]:
    found = {name: case.choose(name, count) for name in names}
    cuts = {name: cut for name, cut in found.items() if cut is not None}
    batch = case.batch
    for name, tower in towers.items():
        cuts[name] = tower(batch.patches, batch.grid, [count])
    if case.grid.frames > 1:
        changes = frame_counts(count, case.grid, batch.patches, "energy")
        for spread, per_frame in (("free over the video", None), ("by pixel change", changes)):
            pick = partial(choose_per_frame, per_frame)
            cuts[f"stts, {spread}"] = towers["stts"](batch.patches, batch.grid, [count], pick)
    return cuts


def rows_of(samples: Sequence[Any], answers: ANSWERS) -> list[dict[str, Any]]:
    """One row per arm, ratio and kind of item or task: accuracy, its interval, and paired differences in points."""
    kinds = {
        "all": set(range(len(samples))),
        "pictures": {i for i, one in enumerate(samples) if not one.media[0].video},
        "videos": {i for i, one in enumerate(samples) if one.media[0].video},
    }
    for i, one in enumerate(samples):
        kinds.setdefault(one.task, set()).add(i)
    rows = []
    for (name, keep), found in answers.items():
        for kind, members in kinds.items():
            asked = sorted(members & found.keys())
            # An arm that leaves out some items is not compared over all of them.
            if not asked or len(asked) < len(members):
                continue
            own = [found[i] for i in asked]
            row: dict[str, Any] = {"arm": name, "keep": keep, "kind": kind, "n": len(own), "right": sum(own),
                                   "accuracy": sum(own) / len(own), "interval": wilson(sum(own), len(own))}  # fmt: skip
            for other in ("unpruned", "random", "stts"):
                theirs = answers.get((other, 1.0 if other == "unpruned" else keep), {})
                if name not in ("unpruned", other) and all(i in theirs for i in asked):
                    row[f"over_{other}"] = paired(own, [theirs[i] for i in asked])
            rows.append(row)
    return rows


def show(rows: list[dict[str, Any]], kind: str, keeps: Sequence[float]) -> None:
    """Print one kind of items: accuracy, and the paired difference to unpruned."""
    cells = {(row["arm"], row["keep"]): row for row in rows if row["kind"] == kind}
    whole = cells["unpruned", 1.0]
    title = f"{kind}, n = {whole['n']}, unpruned {whole['accuracy']:.1%}"
    table = Table("arm", *(f"{keep:.0%}" for keep in keeps), title=title)
    for name in dict.fromkeys(arm for arm, _ in cells if not arm.startswith("unpruned")):
        found = [cells.get((name, keep)) for keep in keeps]
        texts = [
            "-" if row is None else "{:.1%} ({:+.1f} to {:+.1f})".format(
                row["accuracy"], *(100 * bound for bound in row["over_unpruned"][1:])
            )
            for row in found
        ]  # fmt: skip
        table.add_row(name, *texts)
    Console(width=140).print(table)


def plot(rows: list[dict[str, Any]], keeps: Sequence[float], target: Path) -> None:
    """Accuracy against the share kept, pictures and videos beside each other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(13, 5), sharey=True)
    for axis, kind in zip(axes, ("pictures", "videos"), strict=True):
        own = [row for row in rows if row["kind"] == kind]
        for name in dict.fromkeys(row["arm"] for row in own if not row["arm"].startswith("unpruned")):
            line = sorted((row["keep"], row["accuracy"]) for row in own if row["arm"] == name)
            style = (
                {"linewidth": 2.5} if name == "stts" else {"linewidth": 1, "linestyle": "--" if "," in name else "-"}
            )
            axis.plot(*zip(*line, strict=True), marker="o", markersize=3, label=name, **style)
        whole = next(row["accuracy"] for row in own if row["arm"] == "unpruned")
        axis.axhline(whole, color="black", linewidth=0.8, label="unpruned")
        axis.set(xlabel="share of cells kept", title=f"{kind}, n = {own[0]['n']}", xticks=sorted(keeps))
    axes[0].set_ylabel("right answers")
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    figure.savefig(target, dpi=110, bbox_inches="tight")


def _named(given: Sequence[str] | None) -> dict[str, Path]:
    pairs = (text.partition("=") for text in given or ())
    return {name: Path(folder) for name, _, folder in pairs}


def main(
    n: Annotated[int, typer.Option(help="Held-out screens.")] = 500,
    videos: Annotated[int, typer.Option(help="Held-out videos.")] = 200,
    checkpoint: Annotated[Path, typer.Option(help="The model.")] = CHECKPOINT,
    run: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER of another run of benchmarks.stts.train.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of a model trained along with its scorer.")
    ] = None,
    save: Annotated[bool, typer.Option(help="Write stts.json and stts.png under benchmarks/results/.")] = False,
) -> None:
    """Evaluate and print."""
    torch.set_num_threads(1)
    scorers = {"stts": checkpoint / files.PLACE}
    scorers |= {f"stts, {name}": folder / files.PLACE for name, folder in _named(run).items()}
    samples = held_out(n, videos)
    rows = rows_of(samples, ask(checkpoint, scorers, _named(model), samples, KEEPS))
    for kind in dict.fromkeys(row["kind"] for row in rows):
        show(rows, kind, KEEPS)
    if save:
        shape = files.read_shape(checkpoint / files.PLACE)
        found = {"command": command_line("benchmarks.stts.evaluate"), "hardware": hardware(),
                 "shape": vars(shape), "keeps": KEEPS, "rows": rows}  # fmt: skip
        (RESULTS / "stts.json").write_text(json.dumps(found, indent=1) + "\n")
        plot(rows, KEEPS, RESULTS / "stts.png")


if __name__ == "__main__":
    typer.run(main)
