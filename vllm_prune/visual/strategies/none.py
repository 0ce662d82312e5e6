"""No pruning."""

from __future__ import annotations

from torch import Tensor

from ...grid import Grid
from .base import Context, Strategy


class Keep(Strategy):
    """Every cell. A request that names it is not pruned; asking it to drop something is a mistake."""

    name = "none"
    paper = "baseline"
    summary = "every visual token; turns pruning off for the request"

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """Refuse, as `select` answers the one count that is allowed.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"strategy 'none' keeps all {grid.tokens} tokens, it cannot keep {count}")
