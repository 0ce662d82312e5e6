"""Short screen videos in which icons appear and move, and questions about what happened, when, and in which order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .base import SPLITS, Sample, Split, Target, Turn, film
from .draw import COLOURS, LABELS, MARKS, PAGES, SHAPES, Element, render

KINDS = ("appeared", "moved", "direction", "when", "first", "count")
SIZES = (4, 5), (7, 9)
WAYS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


@dataclass(frozen=True)
class Story:
    """What happens.

    Attributes:
        steps: elements on each temporal step's screen.
        since: shapes that appear, with the step in which they do.
        mover: the shape that moves, empty if none does.
        way: its direction.
    """

    steps: list[list[Element]]
    since: dict[str, int]
    mover: str = ""
    way: str = ""


def sample(
    split: Split,
    number: int,
    kind: str | None = None,
    size: tuple[int, int] | None = None,
    turns: int = 1,
    steps: int | None = None,
) -> Sample:
    """Sample `number` of a split; equal arguments give equal samples.

    Args:
        split: seeds of different splits never meet.
        number: index in the split.
        kind: what the first turn asks; drawn when absent.
        size: rows and columns of the screen in cells; drawn when absent.
        turns: questions about the video, all different.
        steps: temporal steps, at least three; drawn when absent.
    """
    rng = random.Random(f"video-{SPLITS[split]}-{number}")
    rows, cols = size or (rng.randint(4, 7), rng.randint(5, 9))
    length = steps or rng.randint(3, 5)
    first = kind or rng.choice(KINDS)
    arriving = {"appeared": 1, "first": 2, "when": rng.randint(1, 2)}.get(first, rng.randint(1, 3))
    story = tell(rng, rows, cols, length, min(arriving, length - 1), first in ("moved", "direction"))
    asked = list(turns_about(story))
    rng.shuffle(asked)
    asked.sort(key=lambda turn: turn.kind != first)
    background = rng.choice(PAGES)
    medium = film([render(rows, cols, step, background) for step in story.steps], story.steps)
    return Sample("video", (medium,), (replace(asked[0], shown=(0,)), *asked[1:turns]))


def tell(rng: random.Random, rows: int, cols: int, length: int, arriving: int, moving: bool) -> Story:
    """A story with `arriving` new icons, each in a step of its own, and perhaps one that moves."""
    moving = moving or rng.random() < 0.3
    still = rng.randint(1, 3)
    count = arriving + still + moving
    looks = list(zip(rng.sample(SHAPES, count), rng.sample(list(COLOURS), count), strict=True))
    marks = rng.sample(MARKS, count + 2)
    way = rng.choice(list(WAYS))
    path = _path(rng, rows, cols, length, way) if moving else []
    free = [cell for cell in (divmod(i, cols) for i in range(rows * cols)) if cell not in path]
    cells = rng.sample(free, min(len(free), count + 2))
    steps: list[list[Element]] = [[] for _ in range(length)]
    mover = ""
    if moving:
        mover, colour = looks.pop()
        mark = marks.pop()
        for step, cell in zip(steps, path, strict=True):
            step.append(Element(*cell, mark, shape=mover, colour=colour))
    since = {}
    for start in rng.sample(range(1, length), arriving):
        one = _icon(looks, marks, cells)
        since[one.shape] = start
        for step in steps[start:]:
            step.append(one)
    fixed = [_icon(looks, marks, cells) for _ in range(still)]
    fixed += [Element(*cells.pop(), marks.pop(), label=label) for label in rng.sample(LABELS, rng.randint(0, 2))]
    return Story([[*step, *fixed] for step in steps], since, mover, way if moving else "")


def _icon(looks: list[tuple[str, str]], marks: list[str], cells: list[tuple[int, int]]) -> Element:
    shape, colour = looks.pop()
    return Element(*cells.pop(), marks.pop(), shape=shape, colour=colour)


def _path(rng: random.Random, rows: int, cols: int, length: int, way: str) -> list[tuple[int, int]]:
    """Cells of a straight walk; a screen with fewer cells than steps makes it stop at the edge."""
    down, right = WAYS[way]
    moves = min(length - 1, rows - 1 if down else cols - 1)
    row = rng.randint(max(0, -down * moves), rows - 1 - max(0, down * moves))
    col = rng.randint(max(0, -right * moves), cols - 1 - max(0, right * moves))
    return [(row + down * min(i, moves), col + right * min(i, moves)) for i in range(length)]


def turns_about(story: Story) -> Iterator[Turn]:
    """Every question that the story answers."""
    since = story.since
    if len(since) == 1:
        (shape,) = since
        yield Turn("appeared", "which shape appeared ?", shape, _cells(story, shape))
    if len(since) > 1:
        first = min(since, key=lambda shape: since[shape])
        where = tuple(target for shape in since for target in _cells(story, shape))
        yield Turn("first", "which shape appeared first ?", first, where)
    for shape, step in since.items():
        # Steps are counted from one; nothing appears in the first.
        where = _cells(story, shape)[:1]
        yield Turn("when", f"at which step did the {shape} appear ?", str(step + 1), where)
    where = tuple(target for shape in since for target in _cells(story, shape))
    yield Turn("count", "how many shapes appeared ?", str(len(since)), where)
    if story.mover:
        where = _cells(story, story.mover)
        yield Turn("moved", "which shape moved ?", story.mover, where)
        yield Turn("direction", f"which way did the {story.mover} move ?", story.way, where)


def _cells(story: Story, shape: str) -> tuple[Target, ...]:
    places: list[tuple[int, Sequence[Element]]] = list(enumerate(story.steps))
    return tuple((0, number, e.row, e.col) for number, step in places for e in step if e.shape == shape)
