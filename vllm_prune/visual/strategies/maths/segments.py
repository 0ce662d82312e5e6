"""Runs of frames that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ....grid import Grid
from .vectors import quantise, unit_rows


def neighbour_similarity(tokens: Tensor, grid: Grid) -> list[float]:
    """Cosine of each frame's mean token with that of the next frame, T - 1 numbers. Waits for the device."""
    if grid.frames == 1:
        return []
    means = unit_rows(tokens.reshape(grid.frames, grid.per_frame, -1).float().mean(1))
    return quantise((means[1:] * means[:-1]).sum(1)).tolist()


def scenes(similarity: Sequence[float], fewest: int, threshold: float) -> list[range]:
    """Cut a video where neighbouring frames are least alike (the segmenter of FastVID).

    Args:
        similarity: of each frame with the next, see `neighbour_similarity`.
        fewest: segments at least, as far as there are frames.
        threshold: below it every pair of frames is cut.

    Returns:
        Frames of each segment.
    """
    by_likeness = sorted(range(len(similarity)), key=lambda i: (similarity[i], i))
    cuts = set(by_likeness[: fewest - 1]) | {i for i, value in enumerate(similarity) if value < threshold}
    edges = [0, *(i + 1 for i in sorted(cuts)), len(similarity) + 1]
    return [range(start, end) for start, end in pairwise(edges)]


def banded(rows: Tensor, grid: Grid, bands: int) -> tuple[Tensor, Tensor | None]:
    """The cells of an item as segments of equal length: each frame in as many bands of neighbouring cells.

    Args:
        rows: [M, E].
        grid: of the item.
        bands: at most the cells of a frame.

    Returns:
        [T * bands, width, E], the last band of a frame with rows of zeros where cells are missing; and which are cells,
        bool [T * bands, width], None where all are.
    """
    width = -(-grid.per_frame // bands)
    padding = bands * width - grid.per_frame
    cells = rows.view(grid.frames, grid.per_frame, -1)
    if not padding:
        return cells.reshape(grid.frames * bands, width, -1), None
    cells = torch.nn.functional.pad(cells, (0, 0, 0, padding))
    valid = torch.arange(bands * width, device=rows.device) < grid.per_frame
    return cells.reshape(grid.frames * bands, width, -1), valid.view(bands, width).repeat(grid.frames, 1)
