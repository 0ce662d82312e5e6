"""Samples as model inputs: patches, tokens, explicit positions, and labels for the auxiliary loss."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_prune.visual.positions import grid_positions

from ..tasks import COLOURS, LABELS, SHAPES, Sample
from ..tasks.draw import MARKS

PATCH, MERGE = 14, 2
IGNORE = -100
# Seconds per temporal step at two frames per second, times the architecture's two positions per second.
FRAME_STEP = 2.0


@dataclass
class Batch:
    """Inputs of one step; all samples share a grid.

    Attributes:
        patches: float32 [B * T * 4 * rows * cols, 1176].
        grid: int64 [B, 3], temporal steps and patches.
        tokens: int64 [B, L], padded on the right.
        positions: int64 [3, B, L].
        visual: bool [B, L].
        labels: int64 [B, L], next-token targets, `IGNORE` outside the answer.
        cells: int64 [B * M, 3], icon, label and mark class of every cell, 0 for none.
        targets: bool [B, M], cells that hold the answer.
    """

    patches: Tensor
    grid: Tensor
    tokens: Tensor
    positions: Tensor
    visual: Tensor
    labels: Tensor
    cells: Tensor
    targets: Tensor


def patches_of(sample: Sample) -> np.ndarray:
    """Patches in the processor's order, float32 [T * 4 * rows * cols, 3 * 2 * 14 * 14], values in [-1, 1]."""
    frames = np.stack([np.asarray(frame) for frame in sample.frames])
    if len(frames) == 1:
        frames = np.repeat(frames, 2, axis=0)
    t, rows, cols = sample.grid
    values = (frames.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
    values = values.reshape(t, 2, 3, rows, MERGE, PATCH, cols, MERGE, PATCH)
    return values.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * rows * cols * MERGE**2, -1)


def cell_classes(sample: Sample) -> np.ndarray:
    """int64 [M, 3]: icon (shape and colour), label and mark of every cell."""
    t, rows, cols = sample.grid
    classes = np.zeros((t, rows, cols, 3), dtype=np.int64)
    colours = list(COLOURS)
    for step, elements in enumerate(sample.elements):
        for e in elements:
            icon = 1 + SHAPES.index(e.shape) * len(colours) + colours.index(e.colour) if e.shape else 0
            classes[step, e.row, e.col] = icon, 1 + LABELS.index(e.label) if e.label else 0, 1 + MARKS.index(e.mark)
    return classes.reshape(-1, 3)


def prompt_of(sample: Sample, words: Any, media_first: bool = True) -> list[int]:
    """Token ids of the chat template's prompt, one placeholder per cell."""
    image = len(sample.elements) == 1
    media = {"type": "image"} if image else {"type": "video"}
    text = {"type": "text", "text": sample.question}
    content = [media, text] if media_first else [text, media]
    rendered = words.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    pad = "<|image_pad|>" if image else "<|video_pad|>"
    cells = int(np.prod(sample.grid))
    return list(words(rendered.replace(pad, pad * cells))["input_ids"])


def positions_of(tokens: Sequence[int], sample: Sample, pads: Sequence[int]) -> Tensor:
    """int64 [3, L]: vLLM's rule, text continues at the largest coordinate of the grid plus one."""
    grid = grid_positions(*sample.grid, FRAME_STEP if len(sample.elements) > 1 else 1.0)
    start = next(i for i, token in enumerate(tokens) if token in pads)
    after = start + int(grid.max()) + 1
    tail = torch.arange(len(tokens) - start - grid.shape[1]) + after
    return torch.cat([torch.arange(start).expand(3, -1), grid + start, tail.expand(3, -1)], dim=1)


def collate(samples: Sequence[Sample], words: Any, rng: random.Random) -> Batch:
    """Inputs for samples of one grid."""
    pads = [words.convert_tokens_to_ids(name) for name in ("<|image_pad|>", "<|video_pad|>")]
    rows = []
    for one in samples:
        prompt = prompt_of(one, words, media_first=rng.random() < 0.8)
        answer = [*words(one.answer)["input_ids"], words.eos_token_id]
        rows.append((prompt, answer, positions_of(prompt + answer, one, pads)))
    length = max(len(prompt) + len(answer) for prompt, answer, _ in rows)
    tokens = torch.full((len(rows), length), words.pad_token_id)
    labels = torch.full((len(rows), length), IGNORE)
    positions = torch.zeros(3, len(rows), length, dtype=torch.int64)
    for i, (prompt, answer, place) in enumerate(rows):
        whole = torch.tensor(prompt + answer)
        tokens[i, : len(whole)] = whole
        labels[i, len(prompt) - 1 : len(whole) - 1] = torch.tensor(answer)
        positions[:, i, : len(whole)] = place
    t, height, width = samples[0].grid
    targets = torch.zeros(len(samples), t, height, width, dtype=torch.bool)
    for i, one in enumerate(samples):
        for step, row, col in one.targets:
            targets[i, step, row, col] = True
    return Batch(
        torch.from_numpy(np.concatenate([patches_of(one) for one in samples])),
        torch.tensor([[t, height * MERGE, width * MERGE]] * len(samples)),
        tokens,
        positions,
        torch.isin(tokens, torch.tensor(pads)),
        labels,
        torch.from_numpy(np.concatenate([cell_classes(one) for one in samples])),
        targets.flatten(1),
    )
