"""Pages that headless Chromium rendered, with boxes from the DOM; the test split is committed.

`python -m benchmarks.tasks.render` makes the other splits, and makes the test split again.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from .base import SPLITS, Sample, Split, still
from .draw import Element
from .screens import ask, questions

ROOT = Path(__file__).parents[2]


def folder(split: str) -> Path:
    """Where a split's pages lie; only the test split is part of the repository."""
    return Path(__file__).parent / "rendered" if split == "test" else ROOT / "build" / "pages" / split


@cache
def index(split: str) -> dict[int, dict[str, Any]]:
    """Pages of a split by their number, empty where it was not rendered."""
    path = folder(split) / "index.json"
    return {entry["number"]: entry for entry in json.loads(path.read_text())} if path.exists() else {}


def grids(split: str) -> dict[tuple[int, int], list[int]]:
    """Numbers of a split's pages by rows and columns."""
    found: dict[tuple[int, int], list[int]] = {}
    for number, entry in index(split).items():
        rows, cols = entry["grid"]
        found.setdefault((rows, cols), []).append(number)
    return found


def sample(split: Split, number: int, kind: str | None = None, turns: int = 1, seed: float = 0.0) -> Sample:
    """Sample `number` of a split; numbers beyond the rendered pages ask other questions about the same pages.

    Args:
        split: an own set of pages each.
        number: index in the split.
        kind: what the first turn asks; drawn when absent.
        turns: questions about the page, all different.
        seed: other questions about the same page.

    Raises:
        ValueError: the split was not rendered.
    """
    pages = index(split)
    if not pages:
        raise ValueError(f"no {split} pages; run: python -m benchmarks.tasks.render --split {split}")
    entry = pages[sorted(pages)[number % len(pages)]]
    rng = random.Random(f"pages-{SPLITS[split]}-{number}-{seed}")
    elements = [
        Element(row, col, mark, shape=shape, colour=colour, label=label)
        for row, col, mark, shape, colour, label in entry["elements"]
    ]
    first = ask(rng, kind or rng.choice(["colour", "shape", "icon", "button"]), elements)
    rest = [turn for turn in questions(elements) if turn.question != first.question]
    asked = (replace(first, shown=(0,)), *rng.sample(rest, min(turns - 1, len(rest))))
    return Sample("pages", (still(picture(split, entry["number"]), elements),), asked)


@cache
def picture(split: str, number: int) -> Image.Image:
    """A rendered page."""
    with Image.open(folder(split) / f"{number:04}.png") as image:
        return image.convert("RGB")
