"""Cells that changed since the previous frame, as vLLM keeps them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...grid import Grid
from .base import Context, Strategy, best, best_per_frame
from .maths import evenly_spaced

_FIRST_FRAME = 255.0
# On a CPU the intermediate products of a long video cost more in page faults than in arithmetic; elsewhere launches do.
_VALUES_AT_ONCE, _MANY_VALUES_AT_ONCE = 1 << 21, 1 << 26


class Evs(Strategy):
    """Efficient Video Sampling (arXiv 2510.14624): one minus the cosine to the same cell of the previous frame.

    The first frame comes first, then the cells that changed most. For K of at least one frame the kept
    cells are those of vLLM's `--video-pruning-method evs` at the same K. To make that exact, similarities
    are taken in the dtype of the tokens: in bf16 their rounding is part of the decision.

    vLLM never keeps less than the first frame. Here a smaller K keeps evenly spaced cells of it. There is no
    floor per frame, because the method has none: a frame in which nothing moves may vanish (`mc_evs` keeps one).
    """

    name = "evs"
    paper = "EVS, arXiv 2510.14624"
    summary = "the first frame, then visual tokens that changed since the previous frame; same decisions as vLLM's"
    modalities = frozenset({"video"})
    frame_split = "energy"
    floor = False

    def score(self, tokens: Tensor, grid: Grid, context: Context) -> Tensor:
        """Change against the previous frame, 0 to 2; the first frame gets 255. See `Strategy.score`."""
        frames = tokens.contiguous().view(grid.frames, grid.per_frame, -1)
        step = max(1, (_VALUES_AT_ONCE if tokens.is_cpu else _MANY_VALUES_AT_ONCE) // frames[0].numel())
        pairs = zip(frames[1:].split(step), frames[:-1].split(step), strict=True)
        change = [1 - torch.cosine_similarity(later, sooner, dim=-1).flatten() for later, sooner in pairs]
        return torch.cat([tokens.new_full((grid.per_frame,), _FIRST_FRAME), *change]).float()

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`."""
        if count < grid.per_frame:
            return evenly_spaced(grid.per_frame, count, tokens.device)
        return best(self.score(tokens, grid, context), count, 1)

    def select_frames(self, tokens: Tensor, grid: Grid, per_frame: Sequence[int], context: Context) -> Tensor:
        """See `Strategy.select_frames`."""
        scores = self.score(tokens, grid, context)
        scores[evenly_spaced(grid.per_frame, per_frame[0], tokens.device)] += 1
        return best_per_frame(scores, per_frame)
