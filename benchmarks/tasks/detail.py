"""A two-character code in one small spot of a large screen, among icons, buttons and other codes."""

from __future__ import annotations

import random
from dataclasses import replace

from .base import SPLITS, Sample, Split, Turn, still
from .draw import COLOURS, DIGITS, MARKS, PAGES, Element, render
from .screens import place

KINDS = ("code",)
SIZES = (12, 17), (36, 50)


def sample(
    split: Split, number: int, kind: str | None = None, size: tuple[int, int] | None = None, turns: int = 1
) -> Sample:
    """Sample `number` of a split; equal arguments give equal samples.

    Args:
        split: seeds of different splits never meet.
        number: index in the split.
        kind: `code`, the only one.
        size: rows and columns of the screen in cells; drawn when absent, 200 to 1,800 cells.
        turns: codes asked for, all different.
    """
    rng = random.Random(f"detail-{SPLITS[split]}-{number}")
    scale = rng.uniform(1, 3)
    rows, cols = size or (round(12 * scale), round(17 * scale))
    elements = place(rng, rows, cols)
    taken = {(element.row, element.col) for element in elements}
    free = [cell for cell in (divmod(i, cols) for i in range(rows * cols)) if cell not in taken]
    colours = rng.sample(list(COLOURS), rng.randint(2, min(5, len(free))))
    badges = [
        Element(row, col, rng.choice(MARKS), colour=colour, digit=rng.choice(DIGITS))
        for colour, (row, col) in zip(colours, rng.sample(free, len(colours)), strict=True)
    ]
    asked = [
        Turn("code", f"read the {one.colour} code", one.mark + one.digit, ((0, 0, one.row, one.col),))
        for one in rng.sample(badges, min(turns, len(badges)))
    ]
    elements += badges
    image = render(rows, cols, elements, rng.choice(PAGES))
    return Sample("detail", (still(image, elements),), (replace(asked[0], shown=(0,)), *asked[1:]))
