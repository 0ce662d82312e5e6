"""Where content comes from: block matching between two frames."""

from __future__ import annotations

import torch
from torch import Tensor

from .vectors import quantise


def match(frame: Tensor, reference: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Find each cell's most similar reference cell within `radius` rows and columns (block matching).

    Ties prefer the nearer row, then the upper one, then the left column.

    Args:
        frame: unit rows, float32 [R, C, D].
        reference: unit rows, float32 [R, C, D].
        radius: 0 compares a cell with the same place only.

    Returns:
        Best cosine, float32 [R, C], and the flat index of the reference cell, int64 [R, C].
    """
    rows, cols, _ = frame.shape
    best = frame.new_full((rows, cols), -torch.inf)
    index = torch.zeros((rows, cols), dtype=torch.int64, device=frame.device)
    places = torch.arange(cols, device=frame.device)
    far = (places[:, None] - places[None, :]).abs() > radius
    for shift in sorted(range(-radius, radius + 1), key=abs):
        top, bottom = max(0, -shift), rows - max(0, shift)
        if bottom <= top:
            continue
        # A product of whole rows wastes the far columns and still beats gathering neighbours: it is one GEMM.
        similar = torch.bmm(frame[top:bottom], reference[top + shift : bottom + shift].mT)
        value, col = quantise(similar).masked_fill_(far, -torch.inf).max(dim=-1)
        row = torch.arange(top + shift, bottom + shift, device=frame.device)[:, None]
        better = value > best[top:bottom]
        best[top:bottom] = torch.where(better, value, best[top:bottom])
        index[top:bottom] = torch.where(better, row * cols + col, index[top:bottom])
    return best, index
