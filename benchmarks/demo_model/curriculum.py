"""Which samples come next: tasks that are not answered yet more often, and small screens before large ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..tasks import clips, detail, dialogue, enlarged, history, pages, screens, video
from ..tasks.base import Sample

SHARES = {
    "screens": 0.10, "history": 0.26, "video": 0.50, "clips": 0.20, "detail": 0.14, "dialogue": 0.10, "pages": 0.10,
}  # fmt: skip
ENLARGED_SHARES = {"enlarged": 0.6, "enlarged_clips": 0.4}
"""Of a run that teaches the tasks on which pruning is compared with resizing."""
LEVELS = 6
PASSED = 0.8
AHEAD, STARTED = 0.4, 0.4
"""Share of the batches that go ahead of a task's level, once it is answered so often."""
TOKENS = 1700
"""Tokens of a batch, about: what two cores work through in a second. A chat has some 80 besides its cells."""
TEXT = 80
MOST, FEWEST = 16, 3


Draw = Callable[[Sequence[str]], str]
"""Picks one of a task's kinds of questions."""


@dataclass
class Course:
    """Level and recent accuracy of one task."""

    level: int = 0
    recent: float = 0.0

    def hear(self, accuracy: float) -> None:
        """Go on to larger screens once the present ones are answered."""
        self.recent = 0.95 * self.recent + 0.05 * accuracy
        if self.recent > PASSED and self.level < LEVELS:
            self.level, self.recent = self.level + 1, 0.6


@dataclass
class Curriculum:
    """Courses of all tasks.

    Attributes:
        shares: of each task in the batches.
        courses: by task.
        scores: recent accuracy by task and kind of question; kinds that are not answered yet are asked more often.
    """

    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))
    courses: dict[str, Course] = field(init=False)
    scores: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.courses = {name: Course() for name in self.shares}

    def state(self) -> dict[str, Any]:
        """Levels and accuracies, to go on from."""
        return {name: [one.level, one.recent] for name, one in self.courses.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name, (level, recent) in state.items():
            self.courses[name] = Course(level, recent)

    def draw(self, rng: random.Random) -> tuple[str, list[Sample]]:
        """A task and samples that share a grid and a number of media."""
        names = [name for name in self.shares if name != "pages" or pages.grids("train")]
        weights = []
        for name in names:
            one = self.courses[name]
            weights.append(self.shares[name] * (1.2 - one.recent * (0.4 + 0.6 * one.level / LEVELS)))
        name = rng.choices(names, weights)[0]
        level = self.courses[name].level
        if rng.random() < AHEAD and self.courses[name].recent > STARTED:
            # Sizes, numbers of pictures and of steps that held-out samples have, long before the course gets there.
            level = rng.randint(level, LEVELS)
        return name, samples_of(name, rng, level, self.scores)

    def lesson(self, rng: random.Random) -> list[Sample]:
        """Dense screens of what the tower finds hard: rendered pages and badges, or elements of any size."""
        if "enlarged" in self.shares:
            first = rng.randrange(1 << 40)
            return [enlarged.screen("train", first + i, None, (4, 5), 1, enlarged.drawn_scale(rng)) for i in range(10)]
        rendered = pages.grids("train")
        if rendered and rng.random() < 0.6:
            numbers = rendered[min(rendered)]
            return [pages.sample("train", rng.choice(numbers)) for _ in range(8)]
        first = rng.randrange(1 << 40)
        return [detail.sample("train", first + i, None, (5, 6)) for i in range(16)]


def samples_of(task: str, rng: random.Random, level: int, scores: Mapping[str, float] | None = None) -> list[Sample]:
    """A batch of a task, from `level` 0 (small screens) to `LEVELS`; all of one grid and number of media."""
    return _SAMPLES[task](rng, level, partial(_kind, rng, task, scores or {}))


def _kind(rng: random.Random, task: str, scores: Mapping[str, float], kinds: Sequence[str]) -> str:
    return rng.choices(kinds, [(1.05 - scores.get(f"{task}/{kind}", 0.0)) ** 2 for kind in kinds])[0]


def _size(rng: random.Random, level: int, rows: int = 3, cols: int = 4) -> tuple[int, int]:
    return rng.randint(rows, rows + level), rng.randint(cols, cols + level * 4 // 3)


def _count(cells: int) -> int:
    return max(FEWEST, min(MOST, TOKENS // (cells + TEXT)))


def _screens(rng: random.Random, level: int, draw: Draw) -> list[Sample]:
    size, first = _size(rng, level), rng.randrange(1 << 40)
    return [
        screens.sample("train", first + i, draw(screens.KINDS), size, rng.randint(1, 5))
        for i in range(_count(size[0] * size[1]))
    ]


def _history(rng: random.Random, level: int, draw: Draw) -> list[Sample]:
    size, first = _size(rng, min(level, 5)), rng.randrange(1 << 40)
    pictures = rng.randint(2, min(5, 3 + level))
    return [
        history.sample("train", first + i, draw(history.KINDS), size, rng.randint(1, 6), pictures)
        for i in range(_count(size[0] * size[1] * pictures))
    ]


def _dialogue(rng: random.Random, level: int, draw: Draw) -> list[Sample]:
    size, first = _size(rng, min(level, 5)), rng.randrange(1 << 40)
    turns = rng.randint(2, 3)
    return [dialogue.sample("train", first + i, None, size, turns) for i in range(_count(size[0] * size[1] * turns))]


def _video(rng: random.Random, level: int, draw: Draw) -> list[Sample]:
    size, first = _size(rng, min(level, 3), 4, 5), rng.randrange(1 << 40)
    steps = rng.randint(3, 5)
    return [
        video.sample("train", first + i, draw(video.KINDS), size, rng.randint(1, 6), steps)
        for i in range(_count(size[0] * size[1] * steps))
    ]


def _clips(rng: random.Random, level: int, draw: Draw) -> list[Sample]:
    size, first = _size(rng, min(level, 2)), rng.randrange(1 << 40)
    steps = rng.randint(*clips.STEPS)
    return [
        clips.sample("train", first + i, draw(clips.KINDS), size, steps)
        for i in range(_count(size[0] * size[1] * steps))
    ]


def _detail(rng: random.Random, level: int, draw: Draw) -> list[Sample]:
    rows, cols = rng.randint(4, 4 + 3 * level), rng.randint(5, 5 + 4 * level)
    if level >= 4 and rng.random() < 0.2:
        rows, cols = rng.randint(20, 36), rng.randint(28, 50)
    first = rng.randrange(1 << 40)
    return [
        detail.sample("train", first + i, None, (rows, cols), rng.randint(1, 4)) for i in range(_count(rows * cols))
    ]


def _enlarged(rng: random.Random, level: int, draw: Draw) -> list[Sample]:
    size, first, scale = _size(rng, level), rng.randrange(1 << 40), enlarged.drawn_scale(rng)
    return [
        enlarged.screen("train", first + i, draw(screens.KINDS), size, rng.randint(1, 5), scale)
        for i in range(_count(round(size[0] * size[1] * scale**2)))
    ]


def _enlarged_clips(rng: random.Random, level: int, draw: Draw) -> list[Sample]:
    size, first, scale = _size(rng, min(level, 2)), rng.randrange(1 << 40), enlarged.drawn_scale(rng)
    steps = rng.randint(*clips.STEPS)
    return [
        enlarged.clip("train", first + i, draw(clips.KINDS), size, steps, scale)
        for i in range(_count(round(size[0] * size[1] * steps * scale**2)))
    ]


def _pages(rng: random.Random, level: int, draw: Draw) -> list[Sample]:
    del level, draw
    grids = pages.grids("train")
    rows, cols = rng.choice(sorted(grids))
    numbers = grids[rows, cols]
    return [
        pages.sample("train", rng.choice(numbers), turns=rng.randint(1, 5), seed=rng.random())
        for _ in range(_count(rows * cols))
    ]


_SAMPLES = {
    "screens": _screens,
    "history": _history,
    "video": _video,
    "clips": _clips,
    "detail": _detail,
    "dialogue": _dialogue,
    "pages": _pages,
    "enlarged": _enlarged,
    "enlarged_clips": _enlarged_clips,
}
