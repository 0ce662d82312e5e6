"""Screens without what was on them before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...grid import Grid
from .base import Cells, PixelStrategy, TowerOptions
from .maths import first_of_equals


class GuiDedupOptions(TowerOptions):
    """Options of `gui_dedup`, beside those of where it cuts; pixels are there before the tower, so `after: 0` suits it.

    Attributes:
        across: whether what earlier images and videos of the request showed counts as seen.
        flat: texture up to which a visual token is a plain colour, as a share of the full range of a pixel (0.005 is
            about one of 255 levels); raise it for lossy screenshots.
    """

    across: bool = True
    flat: Annotated[float, Field(ge=0, le=1)] = 0.005


class GuiDedup(PixelStrategy):
    """Content that is on the screen for the first time, before plain colours and repeats.

    Screens are exact: an unchanged window or a repeated icon has the same pixels again. Cells fall into four
    classes, best first: textured and new, the first cell of a plain colour, textured and seen before (earlier
    in raster order, in an earlier frame or in an earlier item), plain and seen before. Textured cells rank by
    log(1 + texture) within their class.
    """

    name = "gui_dedup"
    paper = "ours"
    summary = "screen content that was not shown before; plain and repeated visual tokens go last"
    across_items = True
    Options = GuiDedupOptions
    options: GuiDedupOptions

    def score_cells(self, cells: Cells, grid: Grid, earlier: Sequence[Cells]) -> Tensor:
        """Class 0 to 3 plus a rank below 1; see `PixelStrategy.score_cells`."""
        before = [item.digest for item in earlier] if self.options.across else []
        repeated = ~first_of_equals(torch.cat([*before, cells.digest]))[-len(cells.digest) :]
        flat = cells.texture <= self.options.flat
        strength = cells.texture.float().log1p()
        rank = torch.where(flat, 0.0, strength / (1 + strength))
        return 2.0 * ~repeated + 1.0 * ~flat + rank
