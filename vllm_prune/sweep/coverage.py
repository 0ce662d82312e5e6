"""Target coverage: the share of the answer's box that a strategy keeps. Needs no model and no server.

A picture's cells (28 x 28 pixels each, one visual token of the Qwen-VL family) take the place of the tower's features,
so this ranks strategies by pixels alone; one that needs the tower's attention has no figure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .graders import Box

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

CELL = 28


@dataclass(frozen=True)
class Target:
    """A picture and where the answer stands on it.

    Attributes:
        picture: of any size; it is resized to whole cells, as the family's processor does.
        box: left, top, right, bottom in pixels of the picture.
    """

    picture: Image
    box: Box


def cells(picture: Image) -> tuple[Tensor, Any]:
    """Pixels of each cell, float32 [M, 3 * 28 * 28] in [0, 1] with the channels one after the other, and the grid."""
    import numpy as np
    import torch

    from ..grid import Grid

    rows, cols = (max(1, round(side / CELL)) for side in (picture.height, picture.width))
    whole = picture.convert("RGB")
    if whole.size != (cols * CELL, rows * CELL):
        whole = whole.resize((cols * CELL, rows * CELL))
    pixels = torch.from_numpy(np.array(whole)).float() / 255
    by_cell = pixels.view(rows, CELL, cols, CELL, 3).permute(0, 2, 4, 1, 3)
    return by_cell.reshape(rows * cols, -1), Grid(1, rows, cols)


def targets_of(target: Target, grid: Any) -> list[int]:
    """Indices of the cells that the box touches."""
    left, top, right, bottom = target.box
    wide, high = grid.cols / target.picture.width, grid.rows / target.picture.height
    inside = [
        row * grid.cols + col
        for row in range(grid.rows)
        for col in range(grid.cols)
        if left * wide < col + 1 and right * wide > col and top * high < row + 1 and bottom * high > row
    ]
    return inside


def keep(strategy: str, pixels: Tensor, grid: Any, ratio: float) -> Tensor:
    """Cells that a strategy keeps, int64 [K], K = max(1, floor(M x ratio)).

    Raises:
        ValueError: a strategy that needs the tower's attention.
    """
    from ..budget.canonical import Part
    from ..catalogue import VISUAL
    from ..visual.strategies.base import Context, PixelStrategy
    from ..visual.strategies.maths import cells_of

    chooser, count = VISUAL.create(strategy), Part(strategy, keep=repr(ratio)).ratio_count(grid.tokens)
    if isinstance(chooser, PixelStrategy):
        return chooser.select_cells(cells_of(pixels, 1, 3), grid, count, ())
    if chooser.needs:
        raise ValueError(f"{strategy} needs {', '.join(sorted(chooser.needs))}, which pixels do not have")
    seed = int.from_bytes(hashlib.sha256(pixels.numpy().tobytes()).digest()[:7], "big")
    return chooser.select(pixels, grid, count, Context(seed=seed))


def pixel_strategies() -> list[str]:
    """Image strategies that can be run on pixels alone."""
    from ..catalogue import VISUAL

    classes = [(name, VISUAL.strategy_class(name)) for name in VISUAL.names() if name != "none"]
    return [name for name, cls in classes if "image" in cls.modalities and cls.needs <= {"pixels"}]


def coverage(targets: Iterable[Target], strategies: Sequence[str], ratios: Sequence[float]) -> list[dict[str, Any]]:
    """Mean share of the box's cells kept, one row per strategy and ratio; a box outside its picture is left out."""
    covered: dict[tuple[str, float], list[float]] = {(name, ratio): [] for name in strategies for ratio in ratios}
    for target in targets:
        pixels, grid = cells(target.picture)
        wanted = set(targets_of(target, grid))
        for (name, ratio), shares in covered.items():
            if wanted:
                shares.append(len(wanted & set(keep(name, pixels, grid, ratio).tolist())) / len(wanted))
    return [
        {"strategy": name, "keep": ratio, "n": len(shares), "coverage": fmean(shares)}
        for (name, ratio), shares in covered.items()
        if shares
    ]
