"""Where the time of a pruned video goes on a GPU, from measured requests and operations counted from the shapes.

Seconds of a request are taken to be a fixed part, the tower's operations at one speed, and the language model's at
another; the three are fitted to all lengths and budgets of a result of `stts.speed` by least squares of relative
errors. The fixed part is what no budget shortens: launching kernels one by one, decoding, and the engine's steps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..shapes import SEVEN_B, Shape
from ..speed.bound import PATCHES, Request, prefill_operations, tower_operations

TEXT, ANSWER = 32, 4
"""Tokens around the video, and of the answer."""


@dataclass(frozen=True)
class Measured:
    """One budget of one length.

    Attributes:
        cells: visual tokens of the video.
        arm: as the result names it.
        seconds: median of a request.
        tower, language: operations.
    """

    cells: int
    arm: str
    seconds: float
    tower: float
    language: float


@dataclass(frozen=True)
class Fit:
    """What explains the measured seconds.

    Attributes:
        fixed: seconds that no budget shortens.
        tower, language: operations per second.
        error: largest relative error of a predicted request.
    """

    fixed: float
    tower: float
    language: float
    error: float

    def seconds(self, one: Measured, fixed: float | None = None) -> float:
        """Predicted seconds of a request, with another fixed part where one is named."""
        return (self.fixed if fixed is None else fixed) + one.tower / self.tower + one.language / self.language


@dataclass(frozen=True)
class Row:
    """A budget's speed over no budget: as measured, as fitted, without the fixed part, and by operations alone."""

    cells: int
    arm: str
    measured: float
    fitted: float
    unfixed: float
    operations: float


def measured(result: Mapping[str, Any], shape: Shape = SEVEN_B) -> list[Measured]:
    """Every budget and length of a result of `stts.speed`."""
    return [_measured(shape, cell, row, result["after"]) for cell in result["results"] for row in cell["rows"]]


def _measured(shape: Shape, cell: Mapping[str, Any], row: Mapping[str, Any], after: int) -> Measured:
    keep = re.match(r"keep ([\d.]+)", row["arm"])
    # One block more sees all patches: the scorer biases its attention.
    cut = after + 1 if "inside" in row["arm"] else None
    frames = cell["frames"] // 2
    patches = (PATCHES * cell["cells"] // frames,) * frames
    request = Request(patches, TEXT, ANSWER, float(keep[1]) if keep else 1.0, cut)
    language = prefill_operations(shape, request.prompt)
    return Measured(cell["cells"], row["arm"], row["seconds"], tower_operations(shape, request), language)


def fit(rows: Sequence[Measured]) -> Fit:
    """The three figures that explain the measured seconds best."""
    seconds = np.array([one.seconds for one in rows])
    parts = np.array([[1.0, one.tower, one.language] for one in rows]) / seconds[:, None]
    # Columns of like size, or the operations would drown the fixed part.
    scale = parts.max(axis=0)
    solved = np.linalg.lstsq(parts / scale, np.ones(len(rows)), rcond=None)[0] / scale
    error = float(np.abs(parts @ solved - 1).max())
    return Fit(float(solved[0]), 1 / float(solved[1]), 1 / float(solved[2]), error)


def table(rows: Sequence[Measured], fitted: Fit) -> list[Row]:
    """Every budget beside the unpruned request of its length."""
    whole = {one.cells: one for one in rows if one.arm == "stock"}
    return [
        Row(
            one.cells, one.arm, whole[one.cells].seconds / one.seconds,
            fitted.seconds(whole[one.cells]) / fitted.seconds(one),
            fitted.seconds(whole[one.cells], 0.0) / fitted.seconds(one, 0.0),
            (whole[one.cells].tower + whole[one.cells].language) / (one.tower + one.language),
        )
        for one in rows if one.arm != "stock"
    ]  # fmt: skip
