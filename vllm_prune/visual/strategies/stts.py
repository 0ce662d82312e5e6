"""Cells that a trained scorer finds worth keeping, early in the vision tower."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...grid import Grid
from ...shares import even_shares
from ._signals import required
from .base import Context, NoOptions, Strategy, best, best_per_frame

_STEPS = 8.0
_LOWEST, _HIGHEST = -16.0, 9.0
"""Beyond 9 a score in float32 is too close to 1 to tell logits apart."""


class SttsOptions(NoOptions):
    """Options of `stts`.

    Attributes:
        spread: how K is spread over a video. "even" gives each frame its share of it; "free" takes the highest scores
            of the whole video, as the paper does, and may leave a frame with nothing.
        whole: with "free", the largest share of K that the first frame of a video may take to be kept whole; where it
            would take more, its tokens compete by their scores. 1 is the paper's rule, whose videos have 64 frames: of
            a short one it would leave little but the first. 0 never keeps it whole.
    """

    spread: Literal["even", "free"] = "even"
    whole: Annotated[float, Field(ge=0, le=1)] = 0.5


class Stts(Strategy):
    """Spatio-temporal token scoring (arXiv 2603.18004, section 3): the highest scores of an image or of each frame.

    A scorer that was trained with the served model looks at the hidden states of an early block of the tower. The
    next block attends with the scores as a bias, the rest of the tower runs on the kept cells alone. The paper's choice
    over the whole video is `spread: free`; a model that was not trained with gaps answers better without
    (`benchmarks.stts.frame_split`).

    K is the budget's, floor(M * keep) as for every strategy. The authors drop floor(M * (1 - keep)), which keeps one
    more where M * keep is no whole number; `max_tokens` names their K exactly.
    """

    name = "stts"
    paper = "STTS, arXiv 2603.18004, section 3"
    summary = "visual tokens that a scorer trained for the model rates highest, cut inside the vision tower"
    needs = frozenset({"scorer"})
    floor = False
    Options = SttsOptions
    options: SttsOptions

    def score(self, tokens: Tensor, grid: Grid, context: Context) -> Tensor:
        """Logits of the trained scores in whole steps of 1/8; see `Strategy.score`.

        Rounding, which batches and kernels decide, moves a logit by some 1e-5 wherever it lies. In steps that wide it
        next to never moves a cell, and plain cells of a frame, which differ in nothing else, tie.

        Raises:
            ValueError: the model adapter did not run a scorer.
        """
        scores = required(self.name, "scorer", context.scores)
        if len(scores) != grid.tokens:
            raise ValueError(f"scorer gave {len(scores)} values for {grid.tokens} cells")
        logits = scores.to(tokens.device).logit().clamp(_LOWEST, _HIGHEST)
        return (logits * _STEPS).round() / _STEPS

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`."""
        scores = self.score(tokens, grid, context)
        if grid.frames == 1:
            return best(scores, count, 1)
        if self.options.spread == "even":
            return best_per_frame(
                scores, even_shares(count, grid.frames, grid.per_frame, 1 if count >= grid.frames else 0)
            )
        if grid.per_frame <= self.options.whole * count:
            scores = torch.cat([torch.full_like(scores[: grid.per_frame], torch.inf), scores[grid.per_frame :]])
        return best(scores, count, 1)
