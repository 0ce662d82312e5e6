"""Screens with icons and labelled buttons, and questions about their content.

Questions ask what something is or which mark is printed at it, never where it is: neither the tower nor the
decoder of the family has absolute positions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from .base import SPLITS, Sample, Split, Turn, still
from .draw import COLOURS, LABELS, MARKS, PAGES, SHAPES, Element, render

KINDS = ("colour", "shape", "icon", "button")
SIZES = (3, 4), (9, 12)
"""Fewest and most rows and columns in cells."""


def sample(
    split: Split, number: int, kind: str | None = None, size: tuple[int, int] | None = None, turns: int = 1
) -> Sample:
    """Sample `number` of a split; equal arguments give equal samples.

    Args:
        split: seeds of different splits never meet.
        number: index in the split.
        kind: what the first turn asks; drawn when absent.
        size: rows and columns of the screen in cells; drawn when absent.
        turns: questions about the screen, all different.
    """
    rng = random.Random(f"{SPLITS[split]}-{number}")
    drawn = rng.choice(KINDS)
    rows, cols = size or (rng.randint(3, 9), rng.randint(4, 12))
    elements = place(rng, rows, cols)
    asked = [ask(rng, kind or drawn, elements)]
    image = render(rows, cols, elements, rng.choice(PAGES))
    rest = [turn for turn in questions(elements) if turn.question != asked[0].question]
    asked += rng.sample(rest, min(turns - 1, len(rest)))
    first = Turn(asked[0].kind, asked[0].question, asked[0].answer, asked[0].targets, shown=(0,))
    return Sample("screens", (still(image, elements),), (first, *asked[1:]))


def place(rng: random.Random, rows: int, cols: int) -> list[Element]:
    """Icons with different shapes and different colours, buttons with different labels."""
    cells = [divmod(cell, cols) for cell in rng.sample(range(rows * cols), rows * cols)]
    icons = rng.randint(3, min(7, max(3, len(cells) // 3)))
    buttons = rng.randint(2, min(6, max(2, len(cells) // 4)))
    marks = rng.sample(MARKS, icons + buttons)
    looks = zip(rng.sample(SHAPES, icons), rng.sample(list(COLOURS), icons), strict=True)
    found = [Element(*cells.pop(), marks.pop(), shape=shape, colour=colour) for shape, colour in looks]
    found += [Element(*cells.pop(), marks.pop(), label=label) for label in rng.sample(LABELS, buttons)]
    return found


def ask(rng: random.Random, kind: str, elements: Sequence[Element]) -> Turn:
    """A question of one kind about a drawn element."""
    buttons = [element for element in elements if element.label]
    icons = [element for element in elements if element.shape]
    return question(kind, rng.choice(buttons if kind == "button" else icons))


def question(kind: str, target: Element, medium: int = 0) -> Turn:
    """A question about one element of one medium."""
    where = ((medium, 0, target.row, target.col),)
    if kind == "colour":
        return Turn(kind, f"what colour is the {target.shape} ?", target.colour, where)
    if kind == "shape":
        return Turn(kind, f"what shape is {target.colour} ?", target.shape, where)
    if kind == "icon":
        return Turn(kind, f"click the {target.colour} {target.shape}", target.mark, where)
    return Turn(kind, f"click {target.label}", target.mark, where)


def questions(elements: Sequence[Element], medium: int = 0) -> Iterator[Turn]:
    """Every question that the elements of one medium answer."""
    for element in elements:
        for kind in ("button",) if element.label else ("colour", "shape", "icon") if element.shape else ():
            yield question(kind, element, medium)
