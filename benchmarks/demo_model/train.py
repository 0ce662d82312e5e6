"""Train the demo model: `python -m benchmarks.demo_model.train --minutes 30 --out FOLDER`.

The run is resumable: the folder holds the state, a log and, at the end, the checkpoint. Small screens come
first, larger ones once those are answered. An auxiliary loss names what stands in each cell, which makes the
tower right within minutes. Later batches lose a part of their visual tokens, so that the model has seen pruned
prompts.
"""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Qwen2_5_VLForConditionalGeneration

from ..tasks import sample
from ..tasks.draw import COLOURS, LABELS, MARKS, SHAPES
from ..tasks.screens import IMAGE_TASKS, VIDEO_TASKS
from .architecture import HIDDEN, config, save, tokenizer
from .batches import IGNORE, Batch, collate
from .fast import speed_up

CLASSES = (1 + len(SHAPES) * len(COLOURS), 1 + len(LABELS), 1 + len(MARKS))
PEAK = 1e-3
LEVELS = 6
PASSED = 0.8
SIZE = 64


class Trainer:
    """Model, auxiliary heads and optimiser, with the time already spent."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.words = tokenizer()
        self.model = Qwen2_5_VLForConditionalGeneration(config(self.words))
        speed_up(self.model)
        self.heads = nn.ModuleList(nn.Linear(HIDDEN, classes) for classes in CLASSES)
        parameters = [*self.model.parameters(), *self.heads.parameters()]
        self.optimiser = torch.optim.AdamW(parameters, lr=PEAK, weight_decay=0.01, betas=(0.9, 0.95))
        self.step, self.seconds, self.seed = 0, 0.0, seed
        self.level, self.recent = 0, 0.0

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"model": self.model.state_dict(), "heads": self.heads.state_dict(),
                "optimiser": self.optimiser.state_dict(), "step": self.step, "seconds": self.seconds,
                "level": self.level, "recent": self.recent}  # fmt: skip

    def restore(self, path: Path) -> None:
        """Go on from a saved state."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.level, self.recent = state["level"], state["recent"]

    def promote(self, accuracy: float) -> None:
        """Go on to larger screens once the present ones are answered."""
        self.recent = 0.95 * self.recent + 0.05 * accuracy
        if self.recent > PASSED and self.level < LEVELS:
            self.level, self.recent = self.level + 1, 0.5

    def draw(self, rng: random.Random) -> Batch:
        """A batch of the present level: screens from 3 x 3 up to 9 x 12 cells, videos from level 2."""
        video = self.level >= 2 and rng.random() < 0.25
        rows, cols = rng.randint(3, 3 + self.level), rng.randint(3, 4 + self.level * 4 // 3)
        steps = 1
        if video:
            rows, cols, steps = min(rows, 5), min(cols, 6), rng.randint(2, 4)
        size = max(16, min(SIZE, 3200 // (rows * cols * steps)))
        first = rng.randrange(1 << 40)
        tasks = VIDEO_TASKS if video else IMAGE_TASKS
        samples = [sample("train", first + i, rng.choice(tasks), (rows, cols), steps) for i in range(size)]
        return collate(samples, self.words, rng)

    def update(self, batch: Batch, done: float, drop: float) -> dict[str, float]:
        """One optimiser step; returns losses and accuracies."""
        self.model.train()
        rate = PEAK * min(1.0, (self.step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1))))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, labels, cells = forward(self.model, batch, drop)
            names = [head(cells) for head in self.heads]
        answer = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
        auxiliary = torch.stack([_cell_loss(name.float(), batch.cells[:, i]) for i, name in enumerate(names)]).sum()
        loss = answer + (1.0 if done < 0.5 else 0.3) * auxiliary
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        right = ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(1).float().mean()
        seen = batch.cells[:, 2] > 0
        marks = (names[2].argmax(-1) == batch.cells[:, 2])[seen].float().mean()
        icons = (names[0].argmax(-1) == batch.cells[:, 0])[seen].float().mean()
        return {"loss": answer.item(), "auxiliary": auxiliary.item(), "accuracy": right.item(), "marks": marks.item(),
                "icons": icons.item(), "rate": rate}  # fmt: skip


def _cell_loss(logits: Tensor, classes: Tensor) -> Tensor:
    weights = torch.ones(logits.shape[1])
    weights[0] = 0.1
    return cross_entropy(logits, classes, weight=weights)


def forward(model: Any, batch: Batch, drop: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and merged tower tokens.

    Args:
        model: Qwen2.5-VL of transformers.
        batch: inputs.
        drop: share of the cells without the answer that is taken out of the prompt, positions unchanged.

    Returns:
        logits [B, L', V], labels int64 [B, L'], tower tokens [B * M, D].
    """
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
    hidden = model.model.language_model(
        inputs_embeds=embedded, position_ids=positions, attention_mask=seen, use_cache=False
    )
    return model.lm_head(hidden.last_hidden_state), labels, features


def _kept_places(batch: Batch, drop: float) -> Tensor:
    """Places that stay, int64 [B, L']; the same count in every sample, answer cells always among them."""
    chance = torch.rand(batch.targets.shape).masked_fill(batch.targets, -1.0)
    gone = min(int(chance.shape[1] * drop), int((~batch.targets).sum(1).min()))
    order = chance.argsort(1, descending=True)[:, :gone]
    lost = torch.zeros_like(batch.targets).scatter(1, order, True)
    keep = torch.ones_like(batch.visual)
    keep[batch.visual] = ~lost.flatten()
    return keep.nonzero()[:, 1].view(len(keep), -1)


def plot(log: Path, target: Path) -> None:
    """Loss and accuracy over steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(8, 4))
    for key in ("loss", "accuracy", "marks", "icons"):
        axes.plot([row["step"] for row in rows], [row[key] for row in rows], label=key)
    axes.set(xlabel="step", ylim=(0, 3), title="demo model, training batches")
    axes.legend()
    figure.savefig(target, dpi=110, bbox_inches="tight")


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("benchmarks/demo_model/runs/latest"),
    minutes: Annotated[float, typer.Option(help="Training time, counted over all resumed parts.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
) -> None:
    """Train, log and save; an interrupted run goes on where it stopped."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    trainer, state, log = Trainer(seed), out / "state.pt", out / "log.jsonl"
    if state.exists():
        trainer.restore(state)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, log.open("a") as sink:
        bar = progress.add_task("training", total=minutes * 60, completed=trainer.seconds)
        while trainer.seconds < minutes * 60:
            started, done = time.monotonic(), trainer.seconds / (minutes * 60)
            rng = random.Random(f"{seed}-{trainer.step}")
            drop = rng.uniform(0.1, 0.8) if trainer.level >= 3 and rng.random() < 0.35 else 0.0
            found = trainer.update(trainer.draw(rng), done, drop)
            trainer.promote(found["accuracy"])
            trainer.seconds += time.monotonic() - started
            if trainer.step % 10 == 0:
                sink.write(
                    json.dumps(
                        {"step": trainer.step, "seconds": round(trainer.seconds, 1), "level": trainer.level, **found}
                    )
                    + "\n"
                )
                sink.flush()
            if trainer.step % 200 == 0:
                torch.save(trainer.state(), state)
            text = (
                f"step {trainer.step} level {trainer.level} loss {found['loss']:.3f} accuracy {found['accuracy']:.2f}"
            )
            progress.update(bar, completed=trainer.seconds, description=text)
    torch.save(trainer.state(), state)
    save(trainer.model, trainer.words, out / "checkpoint")
    plot(log, out / "loss.png")


if __name__ == "__main__":
    typer.run(main)
