"""A random subset."""

from __future__ import annotations

import torch
from torch import Tensor

from ...grid import Grid
from .base import Context, Strategy, TowerOptions, to_device


class Random(Strategy):
    """K cells drawn without replacement, the same ones for the same content on every device.

    The seed is the item's, so a repeated request hits the caches. Random pruning is the baseline that
    every other strategy has to beat at equal K (UniPruneBench, arXiv 2511.02650).
    """

    name = "random"
    paper = "baseline"
    summary = "a random subset, seeded by the item's content"
    Options = TowerOptions

    def score(self, tokens: Tensor, grid: Grid, context: Context) -> Tensor:
        """A random permutation of 0..M-1; see `Strategy.score`."""
        # Devices have different generators; the CPU's is the one that all share.
        generator = torch.Generator().manual_seed(context.seed)
        return to_device(torch.randperm(grid.tokens, generator=generator).float(), tokens.device)
