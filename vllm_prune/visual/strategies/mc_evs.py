"""Cells that show something new, whatever the camera does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...grid import Grid
from .base import Context, Strategy, TowerOptions, best, best_per_frame
from .maths import evenly_spaced, match, unit_rows

# Above any novelty, which is at most 2.
_FORCED = 4.0


class McEvsOptions(TowerOptions):
    """Options of `mc_evs`, beside those of where it runs.

    Attributes:
        radius: how far content may move between two frames, in visual tokens, and still count as seen.
        refresh: novelty above which a visual token's reference is replaced by what is there now.
        cut: mean novelty of a frame above which it is a scene cut and becomes the reference as a whole.
    """

    radius: Annotated[int, Field(ge=0, le=3)] = 1
    refresh: Annotated[float, Field(ge=0, le=2)] = 0.15
    cut: Annotated[float, Field(ge=0, le=2)] = 0.15


class McEvs(Strategy):
    """Motion-compensated EVS: novelty is one minus the best cosine to a running reference near the cell.

    EVS (arXiv 2510.14624) compares with the same cell one frame earlier. That takes a camera pan for change
    everywhere and overlooks slow change. Here the reference of a cell follows what it shows: content that
    is found again within `radius` cells keeps its reference and takes it along, so slow change adds up
    and a translated texture stays old; content that is new replaces it. The rule when to replace, per cell
    or at a scene cut, is that of the untrained mode of STTS (arXiv 2603.18004).

    The first frame comes first as in EVS, but may take more than half of K only from cells that did not
    change, and every frame keeps at least one cell.
    """

    name = "mc_evs"
    paper = "ours"
    summary = "the first frame, then visual tokens that show something new even while the camera moves"
    modalities = frozenset({"video"})
    frame_split = "energy"
    Options = McEvsOptions
    options: McEvsOptions

    def score(self, tokens: Tensor, grid: Grid, context: Context) -> Tensor:
        """Novelty, 0 to 2; the first frame ranks between unchanged and changed cells. See `Strategy.score`."""
        frames = tokens.reshape(grid.frames, grid.rows, grid.cols, -1)
        novelty = torch.full((grid.frames, grid.per_frame), self.options.refresh, device=tokens.device)
        reference = unit_rows(frames[0])
        for t in range(1, grid.frames):
            frame = unit_rows(frames[t])
            similar, index = match(frame, reference, self.options.radius)
            novelty[t] = 1 - similar.flatten()
            new = (novelty[t] > self.options.refresh) | (novelty[t].mean() > self.options.cut)
            followed = reference.flatten(0, 1).index_select(0, index.flatten())
            reference = torch.where(new.view(grid.rows, grid.cols, 1), frame, followed.view_as(frame))
        return novelty.flatten()

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`."""
        # Every later frame needs one cell; without this bound they would displace the tail of an even spread.
        first = max(1, min(grid.per_frame, count // 2, count - grid.frames + 1))
        return best(self._with_first(first, tokens, grid, context), count, grid.frames)

    def select_frames(self, tokens: Tensor, grid: Grid, per_frame: Sequence[int], context: Context) -> Tensor:
        """See `Strategy.select_frames`."""
        return best_per_frame(self._with_first(per_frame[0], tokens, grid, context), per_frame)

    def _with_first(self, count: int, tokens: Tensor, grid: Grid, context: Context) -> Tensor:
        scores = self.score(tokens, grid, context)
        scores[evenly_spaced(grid.per_frame, count, tokens.device)] = _FORCED
        return scores
