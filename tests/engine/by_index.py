"""A strategy that merges by number alone, so that rounding in the features decides nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_prune.grid import Grid
from vllm_prune.visual.strategies._merging import MergingStrategy
from vllm_prune.visual.strategies.base import Context, Reduction
from vllm_prune.visual.strategies.maths import evenly_spaced, heaviest, mean_by

NAME = "by_index"


class ByIndex(MergingStrategy):
    """Evenly spaced cells, into each of which those that follow it are merged; every third of these weighs most."""

    name = NAME
    paper = "ours"
    summary = "evenly spaced cells with those that follow them"

    def reduce_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Reduction:
        """See `MergingStrategy.reduce_span`."""
        kept, cells = evenly_spaced(grid.tokens, count), torch.arange(grid.tokens)
        owner = (torch.searchsorted(kept, cells, right=True) - 1).clamp_min(0)
        weights = 1 + (7 * cells % 3).float() + cells / 1000

        def merge(rows: Tensor) -> Tensor:
            return mean_by(weights[:, None] * rows.float(), owner, count) / mean_by(weights[:, None], owner, count)

        return Reduction(kept, merge, lambda parts: heaviest(owner, count, parts, weights))
