"""Train the demo model: `python -m benchmarks.demo_model.train --minutes 60 --out FOLDER`.

The run is resumable: the folder holds the state, a log and the checkpoint, all written every two minutes. Small
screens come first, larger ones once those are answered, task by task. Auxiliary losses name what stands in each
cell (at the tower's output), and which picture or step a cell belongs to and what became of its element (inside
the decoder). Later batches lose a part of their visual tokens, so that the model has seen pruned prompts.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Qwen2_5_VLForConditionalGeneration

from .architecture import HIDDEN, config, save, tokenizer
from .batches import CLASSES, IGNORE, Batch, Lesson, collate, lesson_of
from .cells import PLACES, STATES
from .curriculum import ENLARGED_SHARES, SHARES, Curriculum
from .fast import speed_up
from .muon import Muon
from .start import borrow

PEAK = 1e-3
START_LEVEL = 4
"""Level of the screens in a run that starts from a checkpoint that answers them."""
ABLE = 0.65
"""Recent accuracy of a task from which on its batches lose visual tokens, too."""
SAVE_SECONDS = 120
WATCHED = 2
"""Decoder layers below the auxiliary loss."""
TOWER_SHARE = 0.15
"""Share of the batches that train the tower through the answers; its backward pass is a third of a step."""
LESSON_SHARE = 0.6
"""Share of the steps with a lesson: cells of dense screens for the tower and its heads alone, which costs little."""


STATE_WEIGHTS = (0.05, 0.3, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0)
"""Of the states in `cells.STATES`: most elements stay as they are, and few move."""


class Trainer:
    """Model, auxiliary heads and optimisers, with the time already spent."""

    def __init__(self, seed: int, start: Path | None = None, shares: Mapping[str, float] = SHARES) -> None:
        torch.manual_seed(seed)
        self.curriculum = Curriculum(shares)
        self.words = tokenizer()
        self.model = Qwen2_5_VLForConditionalGeneration(config(self.words))
        if start:
            borrow(self.model, self.words, start)
            for name in {"screens", "enlarged"} & set(shares):
                self.curriculum.courses[name].level = START_LEVEL
        speed_up(self.model)
        self.heads = nn.ModuleList(nn.Linear(HIDDEN, classes) for classes in CLASSES)
        self.watch = nn.ModuleList([nn.Linear(HIDDEN, PLACES), nn.Linear(HIDDEN, len(STATES))])
        layers = self.model.model.language_model.layers
        matrices = [p for p in layers.parameters() if p.ndim == 2]
        known = {id(p) for p in matrices}
        tower = list(self.model.model.visual.parameters())
        known |= {id(p) for p in tower}
        others = [p for p in self.model.parameters() if id(p) not in known]
        heads = [*self.heads.parameters(), *self.watch.parameters()]
        groups = [{"params": others, "factor": 0.6}, {"params": tower, "factor": 0.7}, {"params": heads, "factor": 4.0}]
        self.adam = torch.optim.AdamW(groups, lr=PEAK, weight_decay=0.01, betas=(0.9, 0.95))
        self.muon = Muon(matrices, lr=PEAK)
        self.step, self.seconds, self.seed = 0, 0.0, seed
        self.peak, self.resumed = PEAK, 0

    def parts(self) -> dict[str, Any]:
        """Modules and optimisers by their name in the state."""
        return {"model": self.model, "heads": self.heads, "watch": self.watch, "adam": self.adam, "muon": self.muon}

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        found = {name: part.state_dict() for name, part in self.parts().items()}
        return {**found, "step": self.step, "seconds": self.seconds, "courses": self.curriculum.state(),
                "scores": dict(self.curriculum.scores), "words": self.words.get_vocab()}  # fmt: skip

    def restore(self, path: Path) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: its tokens are not today's, as the tasks' texts have changed.
        """
        state = torch.load(path, weights_only=True)
        if state.get("words", self.words.get_vocab()) != self.words.get_vocab():
            raise ValueError(f"the tokens of {path} are not those of today's tasks; begin anew with --start CHECKPOINT")
        for name, part in self.parts().items():
            if name in state:
                part.load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]
        self.resumed = self.step
        self.curriculum.restore(state["courses"])
        self.curriculum.scores.update(state["scores"])

    def rates(self, done: float) -> float:
        """Set the learning rates: warm-up, half of the time at the peak, then a cosine."""
        warm = min(1.0, (self.step - self.resumed + 1) / 60)
        rest = max(0.0, (min(done, 1.0) - 0.4) / 0.6)
        rate = self.peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * rest)))
        for group in [*self.adam.param_groups, *self.muon.param_groups]:
            group["lr"] = rate * group.get("factor", 1.0)
        return rate

    def update(
        self, task: str, batch: Batch, done: float, drop: float, tower: bool, lesson: Lesson | None = None
    ) -> dict[str, float]:
        """One optimiser step; returns losses and accuracies."""
        self.model.train()
        rate = self.rates(done)
        found = forward(self.model, batch, drop, tower)
        answer = cross_entropy(found.logits, found.labels[found.labels != IGNORE])
        loss = answer
        if tower:
            loss = loss + 0.2 * self.tower_loss(found.features, batch.cells)[0]
        marks = float("nan")
        if lesson:
            features = self.model.model.visual(lesson.patches, grid_thw=lesson.grid).pooler_output
            named, marks = self.tower_loss(features, lesson.cells)
            loss = loss + 0.5 * named
        state_right = float("nan")
        if found.watched is not None:
            hidden = found.watched[batch.visual]
            place, state = (head(hidden) for head in self.watch)
            loss = (
                loss + 0.3 * cross_entropy(place, batch.places) + 2.0 * _class_loss(state, batch.states, STATE_WEIGHTS)
            )
            known = batch.states > 0
            state_right = (state.argmax(-1) == batch.states)[known].float().mean().item()
        for optimiser in (self.adam, self.muon):
            optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in (self.adam, self.muon):
            optimiser.step()
        self.step += 1
        accuracy = self.note(task, found.right(), batch) if not drop else float("nan")
        return {"loss": answer.item(), "accuracy": accuracy, "marks": marks, "states": state_right, "rate": rate}

    def tower_loss(self, features: Tensor, cells: Tensor) -> tuple[Tensor, float]:
        """Loss of naming what stands in each cell, and the share of marks that are named."""
        names = [head(features) for head in self.heads]
        loss = torch.stack([_class_loss(name, cells[:, i], (0.1,)) for i, name in enumerate(names)]).sum()
        seen = cells[:, 2] > 0
        return loss, (names[2].argmax(-1) == cells[:, 2])[seen].float().mean().item()

    def note(self, task: str, right: Tensor, batch: Batch) -> float:
        """Remember the accuracy per kind of first turns, and tell the curriculum."""
        scores = self.curriculum.scores
        answers = [bool(right[one.row, one.start : one.end].all()) for one in batch.asked]
        for one, correct in zip(batch.asked, answers, strict=True):
            if one.turn == 0 or task == "dialogue":
                scores[one.name] = 0.98 * scores.get(one.name, 0.0) + 0.02 * correct
        accuracy = sum(answers) / len(answers)
        self.curriculum.courses[task].hear(accuracy)
        return accuracy


def _class_loss(logits: Tensor, classes: Tensor, first: Sequence[float]) -> Tensor:
    """Cross entropy in which the first classes have weights of their own and the others one."""
    weights = torch.ones(logits.shape[1])
    weights[: len(first)] = torch.tensor(first)
    return cross_entropy(logits, classes, weight=weights, ignore_index=IGNORE)


@dataclass
class Found:
    """What a forward pass gives.

    Attributes:
        logits: float32 [N, V], of the labelled places.
        labels: int64 [B, L'], of the places that stayed.
        features: tower tokens [B * M, D].
        watched: hidden states [B, L, D] below the auxiliary loss; None where cells were left out or for one step.
    """

    logits: Tensor
    labels: Tensor
    features: Tensor
    watched: Tensor | None

    def right(self) -> Tensor:
        """Whether each labelled place is predicted, bool [B, L']; true elsewhere."""
        asked = self.labels != IGNORE
        return torch.ones_like(asked).masked_scatter(asked, self.logits.argmax(-1) == self.labels[asked])


def forward(model: Any, batch: Batch, drop: float = 0.0, tower: bool = False) -> Found:
    """Run the model.

    Args:
        model: Qwen2.5-VL of transformers.
        batch: inputs.
        drop: share of the cells without the answer that is taken out of the prompt, positions unchanged.
        tower: whether gradients reach the tower.
    """
    with torch.set_grad_enabled(tower and torch.is_grad_enabled()):
        features = model.model.visual(batch.patches, grid_thw=batch.grid).pooler_output
    embedded = model.get_input_embeddings()(batch.tokens)
    embedded = embedded.masked_scatter(batch.visual[..., None], features.to(embedded.dtype))
    positions, labels = batch.positions, batch.labels
    if drop:
        kept = _kept_places(batch, drop)
        embedded = embedded.gather(1, kept[..., None].expand(-1, -1, embedded.shape[-1]))
        positions = positions.gather(2, kept.expand(3, -1, -1))
        labels = labels.gather(1, kept)
    # Without a mask transformers takes the constant time of an image's positions for a border of packed sequences.
    seen = torch.ones(embedded.shape[:2], dtype=torch.int64)
    steps = bool((batch.places >= 0).any())
    out = model.model.language_model(
        inputs_embeds=embedded, position_ids=positions, attention_mask=seen, use_cache=False, output_hidden_states=True
    )
    watched = out.hidden_states[WATCHED] if steps and not drop else None
    return Found(model.lm_head(out.last_hidden_state[labels != IGNORE]), labels, features, watched)


def _kept_places(batch: Batch, drop: float) -> Tensor:
    """Places that stay, int64 [B, L']; the same count in every sample, answer cells always among them."""
    chance = torch.rand(batch.kept.shape).masked_fill(batch.kept, -1.0)
    gone = min(int(chance.shape[1] * drop), int((~batch.kept).sum(1).min()))
    order = chance.argsort(1, descending=True)[:, :gone]
    lost = torch.zeros_like(batch.kept).scatter(1, order, True)
    keep = torch.ones_like(batch.visual)
    keep[batch.visual] = ~lost.flatten()
    return keep.nonzero()[:, 1].view(len(keep), -1)


def plot(log: Path, target: Path) -> None:
    """Accuracy per task, smoothed, and loss over steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for name in sorted({key for row in rows for key in row["scores"]}):
        points = [(row["step"], row["scores"][name]) for row in rows if name in row["scores"]]
        left.plot(*zip(*points, strict=True), label=name)
    left.set(xlabel="step", ylim=(0, 1), title="accuracy on training batches, first turns")
    left.legend(fontsize=6, ncols=2)
    right.plot([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=0.6)
    right.set(xlabel="step", yscale="log", title="answer loss")
    figure.savefig(target, dpi=100, bbox_inches="tight")


def write(trainer: Trainer, out: Path) -> None:
    """State and checkpoint; a run that is ended meanwhile keeps the ones before."""
    torch.save(trainer.state(), out / "state.new")
    (out / "state.new").replace(out / "state.pt")
    save(trainer.model, trainer.words, out / "checkpoint")


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("benchmarks/demo_model/runs/latest"),
    minutes: Annotated[float, typer.Option(help="Training time, counted over all resumed parts.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    peak: Annotated[float, typer.Option(help="Highest learning rate; less where a trained model goes on.")] = PEAK,
    start: Annotated[Path | None, typer.Option(help="Checkpoint whose fitting weights a new run begins with.")] = None,
    enlarged: Annotated[bool, typer.Option(help="Only the tasks on which pruning is compared with resizing.")] = False,
) -> None:
    """Train, log and save; an interrupted run goes on where it stopped."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    trainer, log = Trainer(seed, start, ENLARGED_SHARES if enlarged else SHARES), out / "log.jsonl"
    trainer.peak = peak
    if (out / "state.pt").exists():
        trainer.restore(out / "state.pt")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    saved = time.monotonic()
    with Progress(*columns) as progress, log.open("a") as sink:
        bar = progress.add_task("training", total=minutes * 60, completed=trainer.seconds)
        while trainer.seconds < minutes * 60:
            started, done = time.monotonic(), trainer.seconds / (minutes * 60)
            rng = random.Random(f"{seed}-{trainer.step}")
            task, samples = trainer.curriculum.draw(rng)
            course = trainer.curriculum.courses[task]
            able = course.level >= 3 or course.recent > ABLE
            drop = rng.uniform(0.1, 0.8) if able and rng.random() < 0.25 else 0.0
            tower = rng.random() < TOWER_SHARE
            lesson = lesson_of(trainer.curriculum.lesson(rng)) if rng.random() < LESSON_SHARE else None
            found = trainer.update(task, collate(samples, trainer.words, rng), done, drop, tower, lesson)
            trainer.seconds += time.monotonic() - started
            if trainer.step % 10 == 0:
                about = {"step": trainer.step, "seconds": round(trainer.seconds, 1), "task": task, **found}
                scores = {name: round(score, 3) for name, score in trainer.curriculum.scores.items()}
                sink.write(json.dumps({**about, "courses": trainer.curriculum.state(), "scores": scores}) + "\n")
                sink.flush()
            if time.monotonic() - saved > SAVE_SECONDS:
                write(trainer, out)
                saved = time.monotonic()
            text = f"step {trainer.step} {task} level {course.level} loss {found['loss']:.3f}"
            progress.update(bar, completed=trainer.seconds, description=text)
    write(trainer, out)
    plot(log, out / "loss.png")


if __name__ == "__main__":
    typer.run(main)
