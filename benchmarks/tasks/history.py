"""Three to five screenshots of a session whose page changes a little from step to step.

A question names the picture that it is about, or asks about the present one, and its answer differs between the
pictures: whoever looks at the wrong one is wrong.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from .base import SPLITS, Sample, Split, Turn, still
from .draw import COLOURS, MARKS, PAGES, Element, render
from .screens import place, questions

KINDS = ("earlier", "now")
SIZES = (4, 5), (8, 10)
CHANGES = 2
"""Elements that change in one step, at most."""


def sample(
    split: Split,
    number: int,
    kind: str | None = None,
    size: tuple[int, int] | None = None,
    turns: int = 1,
    pictures: int | None = None,
) -> Sample:
    """Sample `number` of a split; equal arguments give equal samples.

    Args:
        split: seeds of different splits never meet.
        number: index in the split.
        kind: what the first turn asks; drawn when absent.
        size: rows and columns of the screen in cells; drawn when absent.
        turns: questions about the session, all different.
        pictures: screenshots; drawn when absent.
    """
    rng = random.Random(f"history-{SPLITS[split]}-{number}")
    rows, cols = size or (rng.randint(4, 8), rng.randint(5, 10))
    count = pictures or rng.randint(3, 5)
    first = kind or rng.choice(KINDS)
    background = rng.choice(PAGES)
    steps = session(rng, rows, cols, count)
    asked = list(turns_about(steps))
    rng.shuffle(asked)
    asked.sort(key=lambda turn: turn.kind != first)
    head, rest = asked[0], asked[1:]
    chosen = (replace(head, shown=tuple(range(count))), *rng.sample(rest, min(turns - 1, len(rest))))
    media = tuple(still(render(rows, cols, step, background), step) for step in steps)
    return Sample("history", media, chosen, numbered=True)


def session(rng: random.Random, rows: int, cols: int, count: int) -> list[list[Element]]:
    """Elements of every picture: two or three of them change colour, mark or place."""
    steps = [place(rng, rows, cols)]
    actors = rng.sample(range(len(steps[0])), 3)
    for _ in range(count - 1):
        now = list(steps[-1])
        for index in rng.sample(actors, rng.randint(1, CHANGES)):
            now[index] = _changed(rng, now, index, rows, cols)
        steps.append(now)
    return steps


def _changed(rng: random.Random, elements: Sequence[Element], index: int, rows: int, cols: int) -> Element:
    one = elements[index]
    what = rng.choice(["mark", "place", "colour", "colour"] if one.shape else ["mark", "place"])
    if what == "mark":
        return replace(one, mark=rng.choice([m for m in MARKS if m not in {e.mark for e in elements}]))
    colours = [c for c in COLOURS if c not in {e.colour for e in elements}]
    if what == "colour" and colours:
        return replace(one, colour=rng.choice(colours))
    taken = {(e.row, e.col) for e in elements}
    free = [cell for cell in (divmod(i, cols) for i in range(rows * cols)) if cell not in taken]
    row, col = rng.choice(free)
    # A new place comes with a new mark, so that a question about the element has a new answer.
    mark = rng.choice([m for m in MARKS if m not in {e.mark for e in elements}])
    return replace(one, row=row, col=col, mark=mark)


def turns_about(steps: Sequence[Sequence[Element]]) -> Iterator[Turn]:
    """Questions whose answers are not the same in all pictures that can answer them."""
    answers: dict[str, set[str]] = {}
    found = [[*questions(step, number)] for number, step in enumerate(steps)]
    for step in found:
        for turn in step:
            answers.setdefault(turn.question, set()).add(turn.answer)
    for number, step in enumerate(found):
        for turn in step:
            if len(answers[turn.question]) > 1:
                last = number == len(steps) - 1
                text = f"now : {turn.question}" if last else f"picture {number + 1} : {turn.question}"
                yield replace(turn, kind="now" if last else "earlier", question=text)
