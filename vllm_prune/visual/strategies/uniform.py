"""Every n-th cell."""

from __future__ import annotations

from torch import Tensor

from ...grid import Grid
from .base import Context, Strategy, TowerOptions
from .maths import evenly_spaced


class Uniform(Strategy):
    """Evenly spaced cells in raster order: cell floor((i + 0.5) * M / K) for i < K. A baseline that ignores content."""

    name = "uniform"
    paper = "baseline"
    summary = "evenly spaced visual tokens in raster order; ignores content"
    Options = TowerOptions

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`."""
        return evenly_spaced(grid.tokens, count, tokens.device)
