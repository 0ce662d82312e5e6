"""A few frames in space, and every frame in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...grid import Grid
from ...shares import even_shares
from .base import Context, NoOptions, Strategy
from .maths import evenly_spaced, highest, unit_rows


class SlowFastOptions(NoOptions):
    """Options of `slowfast`.

    Attributes:
        slow: frames that are kept in detail; more where K is more than they have.
    """

    slow: Annotated[int, Field(ge=1, le=64)] = 4


class SlowFast(Strategy):
    """The SlowFast token layout of LITA (arXiv 2403.19046), chosen from the tokens that are there.

    One token stands for each frame (fast), evenly spaced ones of a few evenly spaced frames for what is seen (slow).
    LITA trains with mean tokens; a model that was not takes the frame's real token that is nearest to the mean instead.
    With fewer tokens than frames, evenly spaced frames have one.
    """

    name = "slowfast"
    paper = "after the SlowFast tokens of LITA, arXiv 2403.19046"
    summary = "one visual token of every frame, and evenly spaced ones of a few frames"
    modalities = frozenset({"video"})
    Options = SlowFastOptions
    options: SlowFastOptions

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`."""
        fast, device = _central(tokens, grid), tokens.device
        if count <= grid.frames:
            return fast[evenly_spaced(grid.frames, count, device)]
        room = count - grid.frames
        slow = min(grid.frames, max(self.options.slow, -(-room // max(1, grid.per_frame - 1))))
        frames = evenly_spaced(grid.frames, slow).tolist()
        shares = even_shares(room, slow, grid.per_frame - 1)
        return torch.cat([fast, *(_others(grid, t, n, fast) for t, n in zip(frames, shares, strict=True))])

    def select_frames(self, tokens: Tensor, grid: Grid, per_frame: Sequence[int], context: Context) -> Tensor:
        """The nearest to the mean and evenly spaced others of every frame; see `Strategy.select_frames`."""
        fast = _central(tokens, grid)
        parts = [torch.cat([fast[t : t + 1], _others(grid, t, n - 1, fast)]) for t, n in enumerate(per_frame) if n]
        return torch.cat(parts).sort().values


def _central(tokens: Tensor, grid: Grid) -> Tensor:
    """The cell of each frame that is most like the frame's mean, int64 [T]."""
    frames = tokens.reshape(grid.frames, grid.per_frame, -1).float()
    similar = (unit_rows(frames) * unit_rows(frames.mean(1, keepdim=True))).sum(-1)
    return torch.cat([highest(row, 1) + t * grid.per_frame for t, row in enumerate(similar)])


def _others(grid: Grid, frame: int, count: int, fast: Tensor) -> Tensor:
    """`count` evenly spaced cells of a frame, without the one that stands for it."""
    places = evenly_spaced(grid.per_frame - 1, count, fast.device) + frame * grid.per_frame
    return places + (places >= fast[frame])
