"""Samples as model inputs: patches, tokens, explicit positions, and labels for the auxiliary losses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_prune.visual.models.positions import grid_positions

from ..tasks.base import Media, Sample
from ..tasks.draw import COLOURS, DIGITS, LABELS, MARKS, SHAPES, Element
from .cells import STATES, histories

PATCH, MERGE = 14, 2
IGNORE = -100
# Seconds per temporal step at two frames per second, times the architecture's two positions per second.
FRAME_STEP = 2.0
CLASSES = (1 + len(SHAPES) * len(COLOURS) + len(COLOURS), 1 + len(LABELS), 1 + len(MARKS), 1 + len(DIGITS))
PADS = ("<|image_pad|>", "<|video_pad|>")
MARK_AT = 0.76, 0.77
"""Middle of the letter printed at an icon or a button, as shares of its height and width."""


@dataclass
class Asked:
    """One answer in a batch.

    Attributes:
        row: sample.
        start, end: places whose next-token predictions are the answer, its end included.
        name: task and kind.
        turn: number of the turn in its chat.
    """

    row: int
    start: int
    end: int
    name: str
    turn: int


@dataclass
class Batch:
    """Inputs of one step; all samples show the same number of media of the same grid.

    Attributes:
        patches: float32 [B * media * T * 4 * rows * cols, 1176].
        grid: int64 [B * media, 3], temporal steps and patches.
        tokens: int64 [B, L], padded on the right.
        positions: int64 [3, B, L].
        visual: bool [B, L].
        labels: int64 [B, L], next-token targets, `IGNORE` outside the answers.
        cells: int64 [B * M, 4], icon, label, mark and digit class of every cell, 0 for none.
        places: int64 [B * M], number of the picture or temporal step, `IGNORE` where there is one only.
        states: int64 [B * M], what became of the cell's element since the step before, `IGNORE` in the first.
        kept: bool [B, M], cells that may not be left out when a part is.
        asked: answers.
    """

    patches: Tensor
    grid: Tensor
    tokens: Tensor
    positions: Tensor
    visual: Tensor
    labels: Tensor
    cells: Tensor
    places: Tensor
    states: Tensor
    kept: Tensor
    asked: list[Asked]


@dataclass
class Lesson:
    """Pictures for the tower alone: patches, grid and cells as in `Batch`."""

    patches: Tensor
    grid: Tensor
    cells: Tensor


def lesson_of(samples: Sequence[Sample]) -> Lesson:
    """The samples' media without their chats."""
    media = [medium for one in samples for medium in one.media]
    return Lesson(
        torch.from_numpy(np.concatenate([patches_of(medium) for medium in media])),
        torch.tensor([[m.grid[0], m.grid[1] * MERGE, m.grid[2] * MERGE] for m in media]),
        torch.from_numpy(np.concatenate([cell_classes(medium) for medium in media])),
    )


def patches_of(medium: Media) -> np.ndarray:
    """Patches in the processor's order, float32 [T * 4 * rows * cols, 3 * 2 * 14 * 14], values in [-1, 1]."""
    frames = np.stack([np.asarray(frame) for frame in medium.frames])
    if len(frames) == 1:
        frames = np.repeat(frames, 2, axis=0)
    t, rows, cols = medium.grid
    values = (frames.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
    values = values.reshape(t, 2, 3, rows, MERGE, PATCH, cols, MERGE, PATCH)
    return values.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * rows * cols * MERGE**2, -1)


def classes_of(element: Element) -> tuple[int, int, int, int]:
    """Icon or badge, label, mark and digit of one element."""
    colours = list(COLOURS)
    icon = 0
    if element.shape:
        icon = 1 + SHAPES.index(element.shape) * len(colours) + colours.index(element.colour)
    elif element.digit:
        icon = 1 + len(SHAPES) * len(colours) + colours.index(element.colour)
    label = 1 + LABELS.index(element.label) if element.label else 0
    digit = 1 + DIGITS.index(element.digit) if element.digit else 0
    return icon, label, 1 + MARKS.index(element.mark), digit


def cell_classes(medium: Media) -> np.ndarray:
    """int64 [M, 4]: icon, label, mark and digit of every cell; of a larger element, the mark in one of its cells."""
    t, rows, cols = medium.grid
    classes = np.zeros((t, rows, cols, 4), dtype=np.int64)
    for step, elements in enumerate(medium.elements):
        for e in elements:
            cells = medium.covered(e.row, e.col)
            for cell in cells:
                classes[(step, *cell)] = classes_of(e)
            marked = mark_of(medium, e)
            for cell in cells if medium.raster else ():
                classes[(step, *cell, 2)] *= cell == marked
    return classes.reshape(-1, 4)


def mark_of(medium: Media, element: Element) -> tuple[int, int]:
    """The cell in which the middle of a larger icon's or button's letter stands."""
    down, across = medium.scale
    row, col = (element.row + MARK_AT[0]) * down - 0.5, (element.col + MARK_AT[1]) * across - 0.5
    return min(medium.covered(element.row, element.col), key=lambda cell: abs(cell[0] - row) + abs(cell[1] - col))


def chat_of(
    sample: Sample, words: Any, media_first: bool = True, broken: bool = False
) -> tuple[list[int], list[Asked]]:
    """Token ids of the whole chat, one placeholder per cell, and where its answers stand.

    Args:
        sample: the chat.
        words: tokenizer.
        media_first: whether the question stands after its media.
        broken: whether answers begin with a line break, which is then part of the prompt.
    """
    line_break = words("\n")["input_ids"]
    tokens: list[int] = []
    asked = []
    for number, turn in enumerate(sample.turns):
        parts = sample.parts(turn)
        if not media_first and not sample.numbered:
            parts = [*parts[-1:], *parts[:-1]]
        content = [_part(sample, part) for part in parts]
        text = words.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        for part in parts:
            if isinstance(part, int):
                pad = PADS[sample.media[part].video]
                text = text.replace(pad, "<|object_ref_start|>" * int(np.prod(sample.media[part].grid)), 1)
        shown = [part for part in parts if isinstance(part, int)]
        pad = PADS[bool(shown) and sample.media[shown[0]].video]
        tokens += words(text.replace("<|object_ref_start|>", pad))["input_ids"]
        tokens += line_break if broken else []
        answer = [*words(turn.answer)["input_ids"], words.eos_token_id]
        start = len(tokens) - 1
        asked.append(Asked(0, start, start + len(answer), f"{sample.task}/{turn.kind}", number))
        tokens += [*answer, *line_break]
    return tokens, asked


def _part(sample: Sample, part: str | int) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "video" if sample.media[part].video else "image"}


def positions_of(tokens: Sequence[int], media: Sequence[Media], pads: Sequence[int]) -> Tensor:
    """int64 [3, L]: vLLM's rule, text continues at the largest coordinate of a grid plus one."""
    found, place, i, shown = [], 0, 0, iter(media)
    while i < len(tokens):
        if tokens[i] in pads:
            medium = next(shown)
            grid = grid_positions(*medium.grid, FRAME_STEP if medium.video else 1.0)
            found.append(grid + place)
            place, i = place + int(grid.max()) + 1, i + grid.shape[1]
            continue
        found.append(torch.full((3, 1), place))
        place, i = place + 1, i + 1
    return torch.cat(found, dim=1)


def kept_cells(sample: Sample) -> np.ndarray:
    """Bool [M]: every cell that an answer needs; where steps are compared, every element."""
    grids = [np.zeros(medium.grid, dtype=bool) for medium in sample.media]
    for turn in sample.turns:
        for medium, step, row, col in turn.targets:
            grids[medium][step, row, col] = True
    for number, medium in enumerate(sample.media):
        for step, elements in enumerate(medium.elements if medium.video else ()):
            for e in elements:
                for cell in medium.touched(e.row, e.col):
                    grids[number][(step, *cell)] = True
    return np.concatenate([grid.ravel() for grid in grids])


def collate(samples: Sequence[Sample], words: Any, rng: random.Random | None = None) -> Batch:
    """Inputs for samples whose media agree in number and grid.

    Args:
        samples: chats.
        words: tokenizer.
        rng: varies the chats (a question before its medium, a line break before an answer); None leaves them as sent.
    """
    pads = [words.convert_tokens_to_ids(name) for name in PADS]
    rows = []
    for one in samples:
        first = rng is None or rng.random() < 0.95
        whole, asked = chat_of(one, words, first, broken=rng is not None and rng.random() < 0.1)
        rows.append((whole, asked, positions_of(whole, one.media, pads)))
    length = max(len(whole) for whole, _, _ in rows)
    tokens = torch.full((len(rows), length), words.pad_token_id)
    labels = torch.full((len(rows), length), IGNORE)
    positions = torch.zeros(3, len(rows), length, dtype=torch.int64)
    answers = []
    for i, (whole, asked, place) in enumerate(rows):
        tokens[i, : len(whole)] = torch.tensor(whole)
        positions[:, i, : len(whole)] = place
        for one in asked:
            labels[i, one.start : one.end] = tokens[i, one.start + 1 : one.end + 1]
            answers.append(Asked(i, one.start, one.end, one.name, one.turn))
    media = [medium for one in samples for medium in one.media]
    places, states = zip(*(histories(one) for one in samples), strict=True)
    return Batch(
        torch.from_numpy(np.concatenate([patches_of(medium) for medium in media])),
        torch.tensor([[m.grid[0], m.grid[1] * MERGE, m.grid[2] * MERGE] for m in media]),
        tokens,
        positions,
        torch.isin(tokens, torch.tensor(pads)),
        labels,
        torch.from_numpy(np.concatenate([cell_classes(medium) for medium in media])),
        torch.from_numpy(np.concatenate(places)),
        torch.from_numpy(np.concatenate(states)),
        torch.from_numpy(np.stack([kept_cells(one) for one in samples])),
        answers,
    )


__all__ = ["CLASSES", "IGNORE", "STATES", "Asked", "Batch", "cell_classes", "chat_of", "collate", "patches_of"]
