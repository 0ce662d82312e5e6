"""The picture itself, drawn smaller."""

from __future__ import annotations

from torch import Tensor

from ...grid import Grid
from .base import Context, Strategy


class Resize(Strategy):
    """Plain downsampling before the processor, to the largest grid of the item's shape with at most K visual tokens.

    A baseline: nothing is chosen. The picture, or every frame of a video, is drawn smaller by bicubic interpolation
    with antialiasing, as the processor itself does, and then takes the way of a small picture that nothing is pruned
    from. So the vision tower is saved as well, and the model sees the positions of the smaller grid.

    The grid is the largest of those that one passes when a grid of the item's shape grows from one visual token, each
    side rounded to whole visual tokens. It seldom has exactly K: what is left is at most K, and the reports say how
    many. All frames stay, so a video needs one visual token for each.
    """

    name = "resize"
    paper = "baseline"
    summary = "every visual token of the same picture drawn smaller: at most K; saves the vision tower too"
    needs = frozenset({"any_size"})

    def resized(self, grid: Grid, count: int) -> Grid | None:
        """See `Strategy.resized`.

        Raises:
            ValueError: fewer visual tokens than frames.
        """
        each = count // grid.frames
        if each < 1:
            raise ValueError(f"{count} visual tokens are fewer than the {grid.frames} frames, all of which stay")
        rows = cols = 1
        while True:
            # A side grows once the scale brings it half a visual token further; at a tie the longer one goes first.
            row_due, col_due = (2 * rows + 1) * grid.cols, (2 * cols + 1) * grid.rows
            grows = (row_due, grid.cols) <= (col_due, grid.rows)
            taller, wider = rows + grows, cols + (not grows)
            if taller * wider > each:
                return Grid(grid.frames, rows, cols)
            rows, cols = taller, wider

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """Refuse: there is nothing to choose behind the processor."""
        raise NotImplementedError(f"{self.name} draws pictures smaller before the processor; use resized")
