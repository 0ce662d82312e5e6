"""Train a scorer for the demo model: `python -m benchmarks.stts.train`.

The scorer is written beside the checkpoint, where serving finds it. `--mode scorer` leaves the model as it is; `--mode
joint` trains everything, as the paper does, and writes a checkpoint of its own. A scorer alone is taught by a reward
for right answers (see `_credit`), not the paper's gradient: beside a frozen model that one teaches to hide whatever the
question does not ask for, and validation falls after the first steps. `--language --temporal 0.5 --reward 0` is the
paper's way in either mode. Runs are resumable: the folder of a run holds its state and a log. Length is in steps and
data follows from the seed, so a run does not depend on how busy the machine is.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.functional import cross_entropy

from vllm_prune.grid import Grid
from vllm_prune.visual.scorers.stts import files
from vllm_prune.visual.scorers.stts.model import Scorer, Shape
from vllm_prune.visual.scorers.stts.training import (
    Pruned,
    PrunedTower,
    choose,
    grids_of,
    parameter_groups,
    pruned_logits,
    temporal_loss,
)

from ..demo_model.batches import IGNORE, Batch, collate
from ..demo_model.curriculum import LEVELS, samples_of
from ..tasks import GENERATORS, Sample

CHECKPOINT = Path(__file__).parents[1] / "demo_model" / "checkpoint"
TASKS = {"screens": 0.35, "detail": 0.15, "clips": 0.2, "video": 0.3}
"""Shares of the batches: tasks whose chats show one picture or video."""
BATCH = 12
"""Samples of a validation batch."""
KEEP = (0.4, 1.0)
"""Ratios of a batch. Where the answer's cell is cut, the answer teaches nothing about the others."""
NOISE = 0.5
"""Added to scores, uniformly and falling to zero over the run, when cells are chosen for training: what a scorer ranks
low before it has learnt anything would otherwise never be kept, and never be learnt."""
CHECKED = 25, (0.5, 0.3, 0.2), 36
"""Steps between two validations, at what ratios, and on how many samples of each task. The best scorer is kept."""
VALIDATION = {
    "screens": ((4, 5), (9, 12)),
    "detail": ((8, 11), (12, 16)),
    "clips": ((3, 4), (5, 6)),
    "video": ((4, 5), (7, 9)),
}
"""Least and most rows and columns of validation samples."""


class Mode(StrEnum):
    """What is trained."""

    SCORER = "scorer"
    JOINT = "joint"


SIGNALS: dict[Mode, dict[str, Any]] = {
    Mode.SCORER: {"temporal": 0.0, "language": False, "scale": 3.0, "reward": 10.0},
    Mode.JOINT: {"temporal": 0.1, "language": True, "scale": 3.0, "reward": 10.0},
}
"""What teaches by default. A model that is trained along is taught by its answers, as in the paper; its scorer by the
reward as well, without which it soon cuts what is asked for, and the model learns from pictures without an answer."""


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
        scale: factor on the paper's learning rates.
        reward: coefficient of a second signal, see `_credit`; not in the paper.
        warm: whether the scorer starts as the one beside the checkpoint; the paper's starts anew.
        seed: of weights and data.
    """

    mode: Mode
    after: int
    hidden: int
    rescale: str
    temporal: float
    language: bool
    plain: bool
    scale: float
    reward: float
    warm: bool
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
                recipe.rescale,
            )
        )  # fmt: skip
        if recipe.warm:
            self.scorer.load_state_dict(files.load(checkpoint / files.PLACE).state_dict())
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
        """Samples of one task and grid, as the demo model's own training has them."""
        task = rng.choices(list(TASKS), list(TASKS.values()))[0]
        return collate(samples_of(task, rng, rng.randint(0, LEVELS)), self.words, rng)

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
        if self.recipe.language or joint:
            loss = loss + answer
        if self.recipe.reward:
            asked = labels != IGNORE
            shares = ((logits.argmax(-1) == labels) & asked).sum(1) / asked.sum(1)
            loss = loss + self.recipe.reward * _credit(found, shares)
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
def validate(trainer: Trainer, batches: Sequence[Batch]) -> dict[str, float]:
    """Share of validation samples that are answered right, at each checked ratio."""
    _, keeps, each = CHECKED
    found = {}
    for keep in keeps:
        right = 0
        for batch in batches:
            counts = [max(1, int(keep * grid.tokens)) for grid in grids_of(batch.grid, trainer.scorer.shape.merge)]
            pruned = trainer.tower(batch.patches, batch.grid, counts)
            inputs = batch.tokens, batch.positions, batch.visual, batch.labels
            logits, labels = pruned_logits(trainer.model, pruned, *inputs)
            right += int(((logits.argmax(-1) == labels) | (labels == IGNORE)).all(1).sum())
        found[f"validation {keep:g}"] = right / (each * len(VALIDATION))
    return found


def _held_back(trainer: Trainer, each: int) -> Iterator[Batch]:
    for task, sizes in VALIDATION.items():
        for first in range(0, each, BATCH):
            rng = random.Random(first)
            size, more = _size(rng, sizes), {"video": {"steps": 4}, "clips": {"steps": 3}}.get(task, {})
            draw: Any = GENERATORS[task]
            yield collate([draw("validation", first + i, size=size, **more) for i in range(BATCH)], trainer.words, rng)


def _size(rng: random.Random, sizes: tuple[tuple[int, int], tuple[int, int]]) -> tuple[int, int]:
    (least_rows, least_cols), (most_rows, most_cols) = sizes
    return rng.randint(least_rows, most_rows), rng.randint(least_cols, most_cols)


def held_out(n: int, videos: int) -> list[Sample]:
    """The first of the test split: `n` screens, a third as many pages and dense screens, `videos` of both kinds."""
    counts = {"screens": n, "pages": n // 3, "detail": n // 3, "clips": videos // 2, "video": videos - videos // 2}
    return [GENERATORS[task]("test", number) for task, count in counts.items() for number in range(count)]


def _credit(found: Pruned, shares: Tensor) -> Tensor:
    """Minus the covariance, over a batch, of being kept and of right answers, by which scores rise (REINFORCE).

    The answer's loss teaches what to hide from the others, not what would be lost without a cell; this does.

    Args:
        found: one item per sample, all of one size.
        shares: float32 [B], right tokens of the answers.
    """
    kept = torch.zeros_like(found.scores).index_fill(0, found.kept, 1.0).view(len(shares), -1)
    surprise = shares - shares.mean()
    return -(surprise[:, None] * (kept - kept.mean(1, keepdim=True)) * found.scores.view_as(kept)).sum(1).mean()


def _noisily(noise: float, scores: Tensor, grids: Sequence[Grid], counts: Sequence[int]) -> Tensor:
    return choose(scores + noise * torch.rand_like(scores), grids, counts)


def keep_best(trainer: Trainer, out: Path) -> None:
    """Write the scorer, and the model that was trained along with it as a checkpoint of its own."""
    files.save(trainer.scorer, out / files.PLACE)
    if trainer.recipe.mode is Mode.JOINT:
        from ..demo_model.architecture import save as save_model

        save_model(trainer.model, trainer.words, out / "checkpoint")
        files.save(trainer.scorer, out / "checkpoint" / files.PLACE)


def train(trainer: Trainer, steps: int, out: Path) -> None:
    """Train up to a number of steps over all parts of the run; log into its folder."""
    out.mkdir(parents=True, exist_ok=True)
    state, seed = out / "state.pt", trainer.recipe.seed
    if state.exists():
        trainer.restore(state)
    batches = list(_held_back(trainer, CHECKED[2]))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, (out / "log.jsonl").open("a") as sink:
        bar = progress.add_task("training", total=steps, completed=trainer.step)
        while trainer.step < steps:
            rng = random.Random(f"{seed}-{trainer.step}")
            keep = rng.uniform(*KEEP)
            found = trainer.update(trainer.draw(rng), keep, trainer.step / steps)
            row = {"step": trainer.step, "keep": keep, **found}
            if trainer.step % CHECKED[0] == 0 or trainer.step == steps:
                checked = validate(trainer, batches)
                row |= checked
                if sum(checked.values()) > trainer.best:
                    trainer.best = sum(checked.values())
                    keep_best(trainer, out)
                torch.save(trainer.state(), state)
            if trainer.step % 5 == 0 or trainer.step == steps:
                sink.write(json.dumps(row) + "\n")
                sink.flush()
            progress.update(bar, completed=trainer.step, description=f"step {trainer.step} {found['accuracy']:.2f}")


def main(
    steps: Annotated[int, typer.Option(help="Optimiser steps, counted over all resumed parts.")] = 100,
    mode: Annotated[Mode, typer.Option(help="What is trained.")] = Mode.SCORER,
    checkpoint: Annotated[Path, typer.Option(help="The model.")] = CHECKPOINT,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("benchmarks/stts/runs/latest"),
    after: Annotated[int, typer.Option(help="Blocks of the tower in front of the scorer.")] = 1,
    hidden: Annotated[int, typer.Option(help="Width of the scorer's hidden layers.")] = 256,
    rescale: Annotated[str, typer.Option(help="row, frame or video.")] = "row",
    temporal: Annotated[
        float | None, typer.Option(help="Coefficient of the auxiliary loss; 0, joint 0.1, the paper's 0.5.")
    ] = None,
    language: Annotated[
        bool | None, typer.Option(help="Whether the answer's loss teaches the scorer, as in the paper; joint it does.")
    ] = None,
    plain: Annotated[bool, typer.Option(help="Take a frozen model's loss as it is; an ablation.")] = False,
    scale: Annotated[float | None, typer.Option(help="Factor on the paper's learning rates; 3.")] = None,
    reward: Annotated[float | None, typer.Option(help="Coefficient of the reward; 10, in the paper 0.")] = None,
    warm: Annotated[bool, typer.Option(help="Start from the scorer beside the checkpoint.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    save: Annotated[bool, typer.Option(help="Write the scorer beside the checkpoint too.")] = True,
) -> None:
    """Train, log and save; an interrupted run goes on where it stopped."""
    torch.set_num_threads(threads)
    given = {"temporal": temporal, "language": language, "scale": scale, "reward": reward}
    signals = SIGNALS[mode] | {name: value for name, value in given.items() if value is not None}
    recipe = Recipe(mode, after, hidden, rescale, plain=plain, warm=warm, seed=seed, **signals)
    trainer = Trainer(checkpoint, recipe)
    train(trainer, steps, out)
    if save and mode is Mode.SCORER:
        files.save(files.load(out / files.PLACE), checkpoint / files.PLACE)
    typer.echo(f"{trainer.step} steps, {sum(p.numel() for p in trainer.scorer.parameters())} parameters, {out}")


if __name__ == "__main__":
    typer.run(main)
