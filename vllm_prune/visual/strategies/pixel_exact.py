"""Every picture content once, pixel for pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...grid import Grid
from .base import Cells, PixelStrategy, TowerOptions
from .maths import first_of_equals


class PixelExact(PixelStrategy):
    """One of all cells with equal pixels, after PixelPrune (arXiv 2604.00886) at threshold 0.

    The first of equal cells in raster order is kept, later ones go. Where K is less than the different contents, evenly
    spaced ones of them are kept; where it is more, evenly spaced ones of the repeats as well. With `keep: "auto"` K is
    the number of different contents, and one more for each frame without a new one: no content is lost.
    """

    name = "pixel_exact"
    paper = "after PixelPrune, arXiv 2604.00886, at threshold 0"
    summary = "one visual token of all with equal pixels; repeats only where K has room for them"
    automatic = True
    Options = TowerOptions

    def needed_cells(self, cells: Cells, grid: Grid) -> Tensor:
        """The first of all equal cells, and one cell of a frame that has none of these."""
        first = first_of_equals(cells.digest).view(grid.frames, -1)
        first[:, 0] |= ~first.any(1)
        return first.flatten().nonzero().squeeze(1)

    def score_cells(self, cells: Cells, grid: Grid, earlier: Sequence[Cells]) -> Tensor:
        """2 for the first of equal cells, 0 for repeats, and below 1 more for those first in an even spread."""
        first = first_of_equals(cells.digest)
        return 2.0 * first + torch.where(first, _even_rank(first), _even_rank(~first))


def _even_rank(members: Tensor) -> Tensor:
    """0 to 1 for members of a set, such that the highest of any number of them are spread over the set; float32 [M].

    The place of a member in the set, written backwards in binary, is such an order.
    """
    place = members.long().cumsum(0) - 1
    bits = max(1, int(len(members) - 1).bit_length())
    backwards = sum(((place >> bit) & 1) << (bits - 1 - bit) for bit in range(bits))
    assert isinstance(backwards, Tensor)
    return 1 - backwards.float() / (1 << bits)
