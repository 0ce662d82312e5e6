"""Graders: whether a model's text is the answer that a sample expects. Data name them; `register` adds one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Box = tuple[float, float, float, float]
Judge = Callable[[str, "Expectation"], bool]

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")


@dataclass(frozen=True)
class Expectation:
    """What a sample expects.

    Attributes:
        expected: the answer, or a list of accepted answers.
        grader: name of the grader.
        box: where the answer is, (left, top, right, bottom) in pixels of the picture.
        options: of the grader.
    """

    expected: Any
    grader: str = "exact"
    box: Box | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accepted(self) -> list[str]:
        """All accepted answers as text."""
        answers = self.expected if isinstance(self.expected, (list, tuple)) else [self.expected]
        return [str(answer) for answer in answers]


@dataclass(frozen=True)
class Grader:
    """A registered grader.

    Attributes:
        right: decides.
        options: names of the options it takes.
        box: whether it needs the sample's box.
    """

    right: Judge
    options: frozenset[str]
    box: bool


_REGISTRY: dict[str, Grader] = {}


def register(name: str, options: tuple[str, ...] = (), box: bool = False) -> Callable[[Judge], Judge]:
    """Decorator: add a grader under `name`.

    Raises:
        ValueError: the name is taken.
    """

    def add(judge: Judge) -> Judge:
        if name in _REGISTRY:
            raise ValueError(f"grader name {name!r} is taken")
        _REGISTRY[name] = Grader(judge, frozenset(options), box)
        return judge

    return add


def names() -> tuple[str, ...]:
    """Registered names, alphabetical."""
    return tuple(sorted(_REGISTRY))


def check(expectation: Expectation) -> None:
    """Whether an expectation can be graded.

    Raises:
        ValueError: unknown grader, unknown option, no box where one is needed.
    """
    if expectation.grader not in _REGISTRY:
        raise ValueError(f"unknown grader {expectation.grader!r}; known: {', '.join(names())}")
    grader = _REGISTRY[expectation.grader]
    if unknown := set(expectation.options) - grader.options:
        known = ", ".join(sorted(grader.options)) or "none"
        raise ValueError(f"grader {expectation.grader!r} has no option {sorted(unknown)}; it takes: {known}")
    if grader.box and expectation.box is None:
        raise ValueError(f"grader {expectation.grader!r} needs a box")
    if expectation.grader == "number" and not _is_number(expectation.expected):
        raise ValueError(f"grader 'number' needs a number, not {expectation.expected!r}")
    if expectation.grader == "point":
        _scale(expectation)


def grade(answer: str, expectation: Expectation) -> bool:
    """Whether `answer` is right."""
    return _REGISTRY[expectation.grader].right(answer, expectation)


@register("exact")
def exact(answer: str, expectation: Expectation) -> bool:
    """The text itself, white space around it aside."""
    return answer.strip() in [accepted.strip() for accepted in expectation.accepted]


@register("contains")
def contains(answer: str, expectation: Expectation) -> bool:
    """The expected text occurs in the answer, in whatever case."""
    return any(accepted.strip().casefold() in answer.casefold() for accepted in expectation.accepted)


@register("choice")
def choice(answer: str, expectation: Expectation) -> bool:
    """A letter of a multiple-choice question: `B`, `(B) because ...`, `the answer is B`."""
    stated = re.findall(r"(?i:answer|option|choice)(?:\W+(?i:is))?\W+([A-Z])\b", answer)
    first = re.match(r"\W*([A-Za-z])(?:\W*$|[).:,])|\W*([B-HJ-Z])\s", answer)
    letter = stated[-1] if stated else (first[1] or first[2]) if first else ""
    return letter.upper() in [accepted.strip().upper() for accepted in expectation.accepted]


@register("number", options=("tolerance",))
def number(answer: str, expectation: Expectation) -> bool:
    """The last number of the answer; option `tolerance` is relative, 0 by default."""
    numbers = [float(one.replace(",", "")) for one in _NUMBER.findall(answer)]
    wanted = float(expectation.expected)
    return bool(numbers) and math.isclose(numbers[-1], wanted, rel_tol=float(expectation.options.get("tolerance", 0)))


@register("point", options=("coordinates", "size"), box=True)
def point(answer: str, expectation: Expectation) -> bool:
    """A point inside the box: the first two numbers of the answer, or the middle of a box of four numbers.

    Option `coordinates` says what the model counts in: `pixels` of the picture (default), `unit` (0 to 1) or
    `thousand` (0 to 1000); the latter two need `size`, the picture's width and height.
    """
    # `120,340` is two coordinates, whatever it would be among numbers.
    numbers = [float(one) for one in _NUMBER.findall(answer.replace(",", " "))][:4]
    if len(numbers) < 2:
        return False
    x, y = ((numbers[0] + numbers[2]) / 2, (numbers[1] + numbers[3]) / 2) if len(numbers) == 4 else numbers[:2]
    wide, high = _scale(expectation)
    assert expectation.box is not None
    left, top, right, bottom = expectation.box
    return left <= x * wide <= right and top <= y * high <= bottom


def _scale(expectation: Expectation) -> tuple[float, float]:
    """Pixels per unit of the model's coordinates."""
    units = {"pixels": 0, "unit": 1, "thousand": 1000}
    name = expectation.options.get("coordinates", "pixels")
    if name not in units:
        raise ValueError(f"coordinates are one of {', '.join(units)}, not {name!r}")
    if name == "pixels":
        return 1.0, 1.0
    size = expectation.options.get("size")
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise ValueError(f"coordinates {name!r} need size: [width, height]")
    return size[0] / units[name], size[1] / units[name]


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
