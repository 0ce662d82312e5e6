"""Labels of the decoder's auxiliary loss: which picture or step a cell belongs to, and what became of its element.

Elements are compared with the step that first shows them: a walk of several cells is easier to see than one of one.
"""

from __future__ import annotations

import itertools

import numpy as np

from ..tasks.base import Sample
from ..tasks.draw import Element

STATES = ("empty", "same", "new", "changed", "elsewhere", "up", "down", "left", "right")
PLACES = 5
_IGNORE = -100


def histories(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Picture or step number and state of every cell, int64 [M] each.

    Both are -100 where a chat has one step only; so is the state of the first step.
    """
    steps = [(m, list(step)) for m in sample.media for step in m.elements]
    places = [np.full(m.grid[1] * m.grid[2], number) for number, (m, _) in enumerate(steps)]
    states = [np.full(m.grid[1] * m.grid[2], _IGNORE) for m, _ in steps[:1]]
    known: dict[str, Element] = {}
    for (_, before), (medium, now) in itertools.pairwise(steps):
        known = {e.shape or e.label: e for e in before} | known
        grid = np.zeros(medium.grid[1:], dtype=np.int64)
        for e in now:
            for cell in medium.covered(e.row, e.col):
                grid[cell] = STATES.index(_state(known.get(e.shape or e.label), e))
        states.append(grid.ravel())
    if len(steps) == 1:
        places[0] = np.full_like(places[0], _IGNORE)
    return np.concatenate(places), np.concatenate(states)


def _state(before: Element | None, now: Element) -> str:
    if before is None:
        return "new"
    down, right = now.row - before.row, now.col - before.col
    if (down, right) != (0, 0):
        if before.mark != now.mark or (down and right):
            return "elsewhere"
        return "down" if down > 0 else "up" if down else "right" if right > 0 else "left"
    return "same" if before == now else "changed"
