"""Short clips of small screens in which one thing happens: an icon appears, or moves about."""

from __future__ import annotations

import random

from .base import SPLITS, Sample, Split, Turn, film
from .draw import PAGES, Element, render
from .screens import place

KINDS = ("appeared", "moved")
SIZES = (3, 4), (5, 6)
"""Fewest and most rows and columns in cells."""
STEPS = 2, 4


def sample(
    split: Split, number: int, kind: str | None = None, size: tuple[int, int] | None = None, steps: int | None = None
) -> Sample:
    """Sample `number` of a split; equal arguments give equal samples.

    Args:
        split: seeds of different splits never meet.
        number: index in the split.
        kind: "appeared" or "moved"; drawn when absent.
        size: rows and columns in cells; drawn when absent.
        steps: temporal steps; drawn when absent.
    """
    rng = random.Random(f"{SPLITS[split]}-{number}")
    drawn = rng.choice(KINDS)
    rows, cols = size or (rng.randint(SIZES[0][0], SIZES[1][0]), rng.randint(SIZES[0][1], SIZES[1][1]))
    return _tell(rng, kind or drawn, rows, cols, steps or rng.randint(*STEPS))


def _tell(rng: random.Random, kind: str, rows: int, cols: int, steps: int) -> Sample:
    elements = [element for element in place(rng, rows, cols) if element.shape]
    actor = elements.pop()
    taken = {(element.row, element.col) for element in elements}
    free = [cell for cell in (divmod(i, cols) for i in range(rows * cols)) if cell not in taken]
    background = rng.choice(PAGES)
    if kind == "appeared":
        since = rng.randint(1, steps - 1)
        shown = [[*elements, actor] if step >= since else list(elements) for step in range(steps)]
        targets = tuple((0, step, actor.row, actor.col) for step in range(since, steps))
    else:
        path = rng.sample(free, steps)
        shown = [[*elements, Element(*cell, actor.mark, actor.shape, actor.colour)] for cell in path]
        targets = tuple((0, step, *cell) for step, cell in enumerate(path))
    medium = film([render(rows, cols, step, background) for step in shown], shown)
    turn = Turn(kind, f"which shape {kind} ?", actor.shape, targets, shown=(0,))
    return Sample("clips", (medium,), (turn,))
