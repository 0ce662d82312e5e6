"""Train a scorer for the demo model: `python -m benchmarks.stts.train`.

The scorer is written beside the checkpoint, where serving finds it. `--mode scorer` leaves the model as it is; `--mode
joint` trains everything, as the paper does, and writes a checkpoint of its own. Runs are resumable: the folder of a run
holds its state and a log. Length is in steps and data follows from the seed, so a run does not depend on how busy the
machine is.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.functional import cross_entropy

from vllm_prune.stts import files
from vllm_prune.stts.scorer import Scorer, Shape
from vllm_prune.stts.training import (
    TEMPORAL,
    PrunedTower,
    choose,
    grids_of,
    parameter_groups,
    pruned_logits,
    temporal_loss,
)
from vllm_prune.visual.strategies import Grid

from ..demo_model.batches import IGNORE, Batch, collate
from ..tasks import Sample, clips, screens

CHECKPOINT = Path(__file__).parents[1] / "demo_model" / "checkpoint"
CELLS = 1000
"""Cells of a batch, before the cut."""
SIZES = 12, 24
"""Least and most samples of a batch."""
VIDEOS = 0.25
"""Share of the batches that are short videos; the others are screens."""
KEEP = (0.4, 1.0)
"""Ratios of a batch. Where the answer's cell is cut, the answer teaches nothing about the others."""
NOISE = 0.5
"""Added to scores, uniformly and falling to zero over the run, when cells are chosen for training: what a scorer ranks
low before it has learnt anything would otherwise never be kept, and never be learnt."""
CHECKED = 25, (0.5, 0.3, 0.2), 96, 48
"""Steps between two validations, at what ratios, on how many screens and videos. The best scorer is kept."""


class Mode(str, Enum):
    """What is trained."""

    SCORER = "scorer"
    JOINT = "joint"


@dataclass(frozen=True)
class Recipe:
    """What is trained and how; written into the log.

    Attributes:
        mode: "scorer" or "joint".
        after: blocks of the tower in front of the scorer.
        hidden: width of the scorer's hidden layers.
        rescale: see `Shape`.
        temporal: coefficient of the auxiliary loss.
        language: whether the language model's loss reaches the scorer.
        plain: whether a frozen model's loss is taken as it is (an ablation): all samples, gradients of any size.
        film: whether that of videos does; pointless for a model that does not answer them unpruned.
        scale: factor on the paper's learning rates.
        seed: of weights and data.
    """

    mode: Mode
    after: int
    hidden: int
    rescale: str
    temporal: float
    language: bool
    plain: bool
    film: bool
    scale: float
    seed: int


class Trainer:
    """A frozen or trained model, its scorer and their optimiser."""

    def __init__(self, checkpoint: Path, recipe: Recipe) -> None:
        from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

        torch.manual_seed(recipe.seed)
        self.recipe, self.words = recipe, AutoTokenizer.from_pretrained(checkpoint)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        vision = self.model.config.vision_config
        self.scorer = Scorer(
            Shape(
                vision.hidden_size, vision.num_heads, recipe.hidden, vision.spatial_merge_size, recipe.after,
                recipe.rescale,  # type: ignore[arg-type]
            )
        )  # fmt: skip
        # A model that is trained along is taught by all its mistakes; see `update`.
        self.plain = recipe.plain or recipe.mode is Mode.JOINT
        self.tower = PrunedTower(self.model.model.visual, self.scorer, not recipe.language, even=not self.plain)
        groups = parameter_groups(self.model, self.scorer, recipe.mode.value, recipe.scale)
        self.optimiser = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.95))
        self.rates = [group["lr"] for group in groups]
        self.step, self.best = 0, -1.0

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        found = {"scorer": self.scorer.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step,
                 "best": self.best}  # fmt: skip
        return found | ({"model": self.model.state_dict()} if self.recipe.mode is Mode.JOINT else {})

    def restore(self, path: Path) -> None:
        """Go on from a saved state."""
        state = torch.load(path, weights_only=True)
        self.scorer.load_state_dict(state["scorer"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.recipe.mode is Mode.JOINT:
            self.model.load_state_dict(state["model"])
        self.step, self.best = state["step"], state["best"]

    def draw(self, rng: random.Random) -> Batch:
        """Screens of 3 x 4 to 9 x 12 cells, or short videos."""
        first = rng.randrange(1 << 40)
        if rng.random() < VIDEOS:
            (rows, cols), steps = _size(rng, clips.SIZES), rng.randint(*clips.STEPS)
            samples = [
                clips.sample("train", first + i, None, (rows, cols), steps)
                for i in range(_fitting(rows * cols * steps))
            ]
        else:
            rows, cols = _size(rng, screens.SIZES)
            samples = [screens.sample("train", first + i, None, (rows, cols)) for i in range(_fitting(rows * cols))]
        return collate(samples, self.words, rng)

    def update(self, batch: Batch, keep: float, done: float) -> dict[str, float]:
        """One optimiser step; returns losses and accuracy."""
        pace = min(1.0, (self.step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1))))
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * pace
        grids = grids_of(batch.grid, self.scorer.shape.merge)
        counts = [max(1, int(keep * grid.tokens)) for grid in grids]
        joint = self.recipe.mode is Mode.JOINT
        noise = NOISE * max(0.0, 1 - done)
        found = self.tower(batch.patches, batch.grid, counts, partial(_noisily, noise), frozen=not joint)
        logits, labels = pruned_logits(self.model, found, batch.tokens, batch.positions, batch.visual, batch.labels)
        right = ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(1)
        losses = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none").sum(1)
        losses = losses / (labels != IGNORE).sum(1)
        # A frozen model whose cell for the answer was cut can only be taught to hide all others.
        answer = losses.mean() if self.plain else (losses * right).sum() / right.sum().clamp_min(1)
        temporal = temporal_loss(found.scores, found.cells, grids)
        loss = self.recipe.temporal * temporal
        if self.recipe.language and (self.recipe.film or grids[0].frames == 1):
            loss = loss + answer
        self.optimiser.zero_grad()
        if loss.requires_grad:
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for g in self.optimiser.param_groups for p in g["params"]], 1.0)
            self.optimiser.step()
        self.step += 1
        spread = found.scores.detach().std()
        return {
            "loss": losses.mean().item(),
            "temporal": temporal.item(),
            "accuracy": right.float().mean().item(),
            "spread": spread.item(),
        }


@torch.no_grad()
def validate(trainer: Trainer) -> dict[str, float]:
    """Share of validation screens and videos that are answered right, at each checked ratio."""
    _, keeps, stills, films = CHECKED
    batches = [*_held_back(trainer, stills, False), *_held_back(trainer, films, True)]
    found = {}
    for keep in keeps:
        right = 0
        for batch in batches:
            counts = [max(1, int(keep * grid.tokens)) for grid in grids_of(batch.grid, trainer.scorer.shape.merge)]
            pruned = trainer.tower(batch.patches, batch.grid, counts)
            inputs = batch.tokens, batch.positions, batch.visual, batch.labels
            logits, labels = pruned_logits(trainer.model, pruned, *inputs)
            right += int(((logits.argmax(-1) == labels) | (labels == IGNORE)).all(1).sum())
        found[f"validation {keep:g}"] = right / (stills + films)
    return found


def _held_back(trainer: Trainer, n: int, video: bool) -> Iterator[Batch]:
    for first in range(0, n, 12):
        rng = random.Random(first)
        if video:
            size, steps = _size(rng, clips.SIZES), rng.randint(*clips.STEPS)
            samples = [clips.sample("validation", first + i, clips.KINDS[i % 2], size, steps) for i in range(12)]
        else:
            size = rng.randint(4, 9), rng.randint(5, 12)
            samples = [screens.sample("validation", first + i, screens.KINDS[i % 4], size) for i in range(12)]
        yield collate(samples, trainer.words, rng)


def _size(rng: random.Random, sizes: tuple[tuple[int, int], tuple[int, int]]) -> tuple[int, int]:
    (least_rows, least_cols), (most_rows, most_cols) = sizes
    return rng.randint(least_rows, most_rows), rng.randint(least_cols, most_cols)


def _fitting(cells: int) -> int:
    return max(SIZES[0], min(SIZES[1], CELLS // cells))


def held_out(n: int, videos: int) -> list[Sample]:
    """The first `n` screens of the test split, and `videos` clips that follow them."""
    found = [screens.sample("test", i) for i in range(n)]
    rng = random.Random(1)
    for i in range(videos):
        size = _size(rng, clips.SIZES)
        found.append(clips.sample("test", n + i, clips.KINDS[i % 2], size, rng.randint(*clips.STEPS)))
    return found


def _noisily(noise: float, scores: Tensor, grids: Sequence[Grid], counts: Sequence[int]) -> Tensor:
    return choose(scores + noise * torch.rand_like(scores), grids, counts)


def train(trainer: Trainer, steps: int, out: Path) -> None:
    """Train up to a number of steps over all parts of the run; log into its folder."""
    out.mkdir(parents=True, exist_ok=True)
    state, seed = out / "state.pt", trainer.recipe.seed
    if state.exists():
        trainer.restore(state)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, (out / "log.jsonl").open("a") as sink:
        bar = progress.add_task("training", total=steps, completed=trainer.step)
        while trainer.step < steps:
            rng = random.Random(f"{seed}-{trainer.step}")
            keep = rng.uniform(*KEEP)
            found = trainer.update(trainer.draw(rng), keep, trainer.step / steps)
            row = {"step": trainer.step, "keep": keep, **found}
            if trainer.step % CHECKED[0] == 0 or trainer.step == steps:
                checked = validate(trainer)
                row |= checked
                if sum(checked.values()) > trainer.best:
                    trainer.best = sum(checked.values())
                    files.save(trainer.scorer, out / files.PLACE)
                torch.save(trainer.state(), state)
            if trainer.step % 5 == 0 or trainer.step == steps:
                sink.write(json.dumps(row) + "\n")
                sink.flush()
            progress.update(bar, completed=trainer.step, description=f"step {trainer.step} {found['accuracy']:.2f}")


def main(
    steps: Annotated[int, typer.Option(help="Optimiser steps, counted over all resumed parts.")] = 300,
    mode: Annotated[Mode, typer.Option(help="What is trained.")] = Mode.SCORER,
    checkpoint: Annotated[Path, typer.Option(help="The model.")] = CHECKPOINT,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("benchmarks/stts/runs/latest"),
    after: Annotated[int, typer.Option(help="Blocks of the tower in front of the scorer.")] = 1,
    hidden: Annotated[int, typer.Option(help="Width of the scorer's hidden layers.")] = 256,
    rescale: Annotated[str, typer.Option(help="row, frame or video.")] = "row",
    temporal: Annotated[float, typer.Option(help="Coefficient of the auxiliary loss; 0 is an ablation.")] = TEMPORAL,
    language: Annotated[bool, typer.Option(help="Whether the answer's loss teaches the scorer.")] = True,
    plain: Annotated[bool, typer.Option(help="Take a frozen model's loss as it is; an ablation.")] = False,
    film: Annotated[bool, typer.Option(help="Whether the answers of videos do.")] = False,
    scale: Annotated[float, typer.Option(help="Factor on the paper's learning rates.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    save: Annotated[bool, typer.Option(help="Write the scorer beside the checkpoint too.")] = True,
) -> None:
    """Train, log and save; an interrupted run goes on where it stopped."""
    torch.set_num_threads(threads)
    recipe = Recipe(mode, after, hidden, rescale, temporal, language, plain, film, scale, seed)
    trainer = Trainer(checkpoint, recipe)
    train(trainer, steps, out)
    if mode is Mode.JOINT:
        from ..demo_model.architecture import save as save_model

        save_model(trainer.model, trainer.words, out / "checkpoint")
        # The model is the last one, so its scorer is the last one too.
        files.save(trainer.scorer, out / "checkpoint" / files.PLACE)
    elif save:
        files.save(files.load(out / files.PLACE), checkpoint / files.PLACE)
    typer.echo(f"{trainer.step} steps, {sum(p.numel() for p in trainer.scorer.parameters())} parameters, {out}")


if __name__ == "__main__":
    typer.run(main)
