"""The same conversation continued: a screenshot, an answered question, the next screenshot, and so on."""

from __future__ import annotations

import random
from dataclasses import replace

from .base import SPLITS, Sample, Split, Turn, still
from .draw import PAGES, render
from .history import session
from .screens import questions

KINDS = ("second", "third")
SIZES = (4, 5), (8, 10)


def sample(
    split: Split, number: int, kind: str | None = None, size: tuple[int, int] | None = None, turns: int | None = None
) -> Sample:
    """Sample `number` of a split; equal arguments give equal samples.

    Every turn brings a screenshot and asks about it or about an earlier one, by its number.

    Args:
        split: seeds of different splits never meet.
        number: index in the split.
        kind: which turn is to be answered; drawn when absent.
        size: rows and columns of the screen in cells; drawn when absent.
        turns: two or three; follows `kind` when absent.
    """
    rng = random.Random(f"dialogue-{SPLITS[split]}-{number}")
    rows, cols = size or (rng.randint(4, 8), rng.randint(5, 10))
    last = kind or rng.choice(KINDS)
    count = turns or 2 + KINDS.index(last)
    steps, background = session(rng, rows, cols, count), rng.choice(PAGES)
    asked: list[Turn] = []
    for number_of in range(count):
        about = rng.randint(0, number_of)
        turn = rng.choice([*questions(steps[about], about)])
        text = f"now : {turn.question}" if about == number_of else f"picture {about + 1} : {turn.question}"
        asked.append(replace(turn, kind=("first", *KINDS)[number_of], question=text, shown=(number_of,)))
    media = tuple(still(render(rows, cols, step, background), step) for step in steps)
    return Sample("dialogue", media, tuple(asked), numbered=True)
