"""Screens and clips drawn larger, so that an element spans several visual tokens and survives plain resizing.

In the other tasks an element is one visual token large, which no smaller picture can show. Here the held-out samples
are drawn at twice the size (an element spans 2 x 2 visual tokens), those for training at any size from once to
`LARGEST` times, so that elements lie across the borders of visual tokens as they do after resizing.
"""

from __future__ import annotations

import random
from dataclasses import replace

from PIL import Image

from . import clips, screens
from .base import Media, Sample, Split, Target
from .draw import CELL

HELD_OUT = 2.0
"""Scale of held-out samples."""
LARGEST = 2.2
"""Scale of training samples, at most."""


def screen(
    split: Split,
    number: int,
    kind: str | None = None,
    size: tuple[int, int] | None = None,
    turns: int = 1,
    scale: float = HELD_OUT,
) -> Sample:
    """A sample of `screens`, enlarged; arguments as there, `size` before it is."""
    return replace(enlarge(screens.sample(split, number, kind, size, turns), scale), task="enlarged")


def clip(
    split: Split,
    number: int,
    kind: str | None = None,
    size: tuple[int, int] | None = None,
    steps: int | None = None,
    scale: float = HELD_OUT,
) -> Sample:
    """A sample of `clips`, enlarged; arguments as there, `size` before it is."""
    return replace(enlarge(clips.sample(split, number, kind, size, steps), scale), task="enlarged_clips")


def drawn_scale(rng: random.Random) -> float:
    """By how much pictures of training are enlarged in each direction."""
    return HELD_OUT if rng.random() < 0.3 else rng.uniform(1.0, LARGEST)


def enlarge(one: Sample, scale: float) -> Sample:
    """A sample whose pictures are drawn `scale` times as large, in whole visual tokens, targets with them."""
    media = tuple(_larger(medium, scale) for medium in one.media)
    turns = tuple(
        replace(turn, targets=tuple(cell for target in turn.targets for cell in _cells(media, target)))
        for turn in one.turns
    )
    return replace(one, media=media, turns=turns)


def _larger(medium: Media, scale: float) -> Media:
    _, rows, cols = medium.grid
    size = round(cols * scale) * CELL, round(rows * scale) * CELL
    frames = tuple(frame.resize(size, Image.Resampling.BICUBIC) for frame in medium.frames)
    return Media(frames, medium.elements, medium.video, raster=(rows, cols))


def _cells(media: tuple[Media, ...], target: Target) -> list[Target]:
    number, step, row, col = target
    return [(number, step, *cell) for cell in media[number].touched(row, col)]
