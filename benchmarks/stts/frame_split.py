"""What it costs to fix each frame's count beforehand: `python -m benchmarks.stts.frame_split --n 300 --save`.

Qwen3-VL and Molmo2 write text between the frames of a video, so the prompt is laid out before the tower has run and
K has to be split over the frames without having seen a feature. This compares the splits that need only pixels with a
free choice over the whole video: same model, same samples, same K. The demo model has no text between frames, so what
is measured is the choice alone. Beside right answers it counts the videos of which every place of the object that is
asked for is kept at least once, which does not depend on how well the model answers.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vllm_prune.catalogue import VISUAL
from vllm_prune.sweep.statistics import paired
from vllm_prune.visual.frontend.frame_split import FrameSplit, frame_counts
from vllm_prune.visual.scorers.stts import files
from vllm_prune.visual.scorers.stts.training import Pruned, PrunedTower

from ..machine import RESULTS, hardware
from ..tasks import Sample
from .arms import Case, choose_per_frame, load_model
from .train import CHECKPOINT, held_out

KEEPS = (0.5, 0.25, 0.1)
STRATEGIES = ("stts", "vidcom2", "gui_dedup", "mc_evs")
FREE = "free"
"""The choice over the whole video."""
SPLITS: tuple[FrameSplit, ...] = get_args(FrameSplit)
MEASURES = ("right", "shown")
FOUND = dict[tuple[str, str, float], list[tuple[bool, bool]]]
"""Per video: whether the answer is right, and whether all that it asks for is among the kept cells; by strategy,
split and share kept."""


def ask(checkpoint: Path, scorer: Path, n: int) -> tuple[list[bool], FOUND]:
    """Whether the unpruned model is right, and what was found of all arms."""
    model, words = load_model(checkpoint)
    tower = PrunedTower(model.model.visual, files.load(scorer))
    whole: list[bool] = []
    found: FOUND = defaultdict(list)
    with torch.no_grad():
        for number, one in enumerate(track(held_out(0, n), description="asking", transient=True)):
            case = Case(model, words, one, number)
            everything = torch.arange(case.grid.tokens)
            whole += case.right([Pruned(case.features, everything, torch.empty(0), torch.empty(0))])
            for keep in KEEPS:
                cuts = _cuts(case, tower, max(1, int(keep * case.grid.tokens)))
                for (arm, cut), right in zip(cuts.items(), case.right(list(cuts.values())), strict=True):
                    found[(*arm, keep)].append((right, shown(one, cut.kept.tolist())))
    return whole, found


def shown(one: Sample, kept: Collection[int]) -> bool:
    """Whether every place of the answer is among the kept cells in some frame."""
    _, rows, cols = one.media[0].grid
    places = {(row, col) for _, _, row, col in one.targets}
    seen = {(row, col) for _, step, row, col in one.targets if (step * rows + row) * cols + col in kept}
    return places == seen


def _cuts(case: Case, tower: PrunedTower, count: int) -> dict[tuple[str, str], Pruned]:
    batch, cuts = case.batch, {}
    splits: dict[str, Any] = {FREE: None}
    splits |= {split: frame_counts(count, case.grid, batch.patches, split) for split in SPLITS}
    for split, per_frame in splits.items():
        for name in STRATEGIES:
            if "scorer" in VISUAL.strategy_class(name).needs:
                cuts[name, split] = tower(batch.patches, batch.grid, [count], partial(choose_per_frame, per_frame))
            elif (cut := case.choose(name, count, per_frame)) is not None:
                cuts[name, split] = cut
    return cuts


def rows_of(whole: list[bool], found: FOUND) -> list[dict[str, Any]]:
    """One row per arm and share: shares of videos, and paired differences in shares to the free choice."""
    rows = []
    for (name, split, keep), own in found.items():
        row: dict[str, Any] = {"strategy": name, "split": split, "keep": keep,
                               "default": VISUAL.strategy_class(name).frame_split == split}  # fmt: skip
        columns = (zip(*pairs, strict=True) for pairs in (own, found[name, FREE, keep]))
        for measure, values, free in zip(MEASURES, *columns, strict=True):
            row[measure] = {"share": sum(values) / len(values)}
            if split != FREE:
                row[measure]["over_free"] = paired(values, free)
        row["right"]["over_unpruned"] = paired([right for right, _ in own], whole)
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]], measure: str, n: int, unpruned: float) -> None:
    """Print a measure, with the interval of the difference to the free choice in points."""
    table = Table("strategy", "split", *(f"{keep:.0%}" for keep in KEEPS))
    table.title = f"{measure}, n = {n}, unpruned model right {unpruned:.1%}"
    cells = {(row["strategy"], row["split"], row["keep"]): row[measure] for row in rows}
    for name in STRATEGIES:
        for split in (FREE, *SPLITS):
            table.add_row(name, split, *(text(cells[name, split, keep]) for keep in KEEPS))
    Console(width=120).print(table)


def text(cell: dict[str, Any]) -> str:
    """A share, with the interval of its difference in points where it has one."""
    low, high = cell.get("over_free", (0, None, None))[1:]
    bounds = "" if low is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{cell['share']:.1%}{bounds}"


def main(
    n: Annotated[int, typer.Option(help="Held-out videos.")] = 300,
    checkpoint: Annotated[Path, typer.Option(help="The model.")] = CHECKPOINT,
    scorer: Annotated[Path | None, typer.Option(help="Scorer of `stts`; by default the one beside the model.")] = None,
    save: Annotated[bool, typer.Option(help="Write frame_split.json under benchmarks/results/.")] = False,
) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    own = scorer or checkpoint / files.PLACE
    whole, answers = ask(checkpoint, own, n)
    rows, unpruned = rows_of(whole, answers), sum(whole) / len(whole)
    for measure in MEASURES:
        show(rows, measure, n, unpruned)
    if save:
        # Of another scorer the file's name says enough.
        words = [Path(word).name for word in sys.argv[1:]]
        found = {"command": " ".join(["python -m benchmarks.stts.frame_split", *words]), "hardware": hardware(),
                 "shape": vars(files.read_shape(own)), "n": n, "unpruned": unpruned, "keeps": KEEPS,
                 "strategies": STRATEGIES, "splits": SPLITS, "rows": rows}  # fmt: skip
        (RESULTS / "frame_split.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
