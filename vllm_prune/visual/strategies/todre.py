"""A varied subset, by the sum of distances or by the smallest one."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...grid import Grid
from .base import Context, Strategy, TowerOptions
from .maths import diverse_order, highest, max_sum_order, sketch


class TodreOptions(TowerOptions):
    """Options of `todre`, beside those of where it runs.

    Attributes:
        rule: "max_sum" picks what has the largest sum of distances to all picks before (the paper's second version),
            "k_center" what is farthest from the nearest of them (its first).
    """

    rule: Literal["max_sum", "k_center"] = "max_sum"


class Todre(Strategy):
    """Stage 1 of ToDRE (arXiv 2505.18757): greedy diversity over the whole item, without attention.

    Distances are one minus the cosine, on a 128-wide sketch of the cells. The first pick is the cell farthest from the
    mean; the paper's is the one that the class token attends to most, which towers here do not have. Many picks are
    made in blocks (see `maths.max_sum_order`, `maths.diverse_order`). Stage 2, which drops visual tokens inside late
    layers of the language model, is no part of this. No floor per frame is promised, as the method has none.
    """

    name = "todre"
    paper = "ToDRE, arXiv 2505.18757, its first stage"
    summary = "visual tokens with the largest sum of distances to each other"
    floor = False
    Options = TodreOptions
    options: TodreOptions

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`."""
        units = sketch(tokens)
        if self.options.rule == "max_sum":
            return max_sum_order(units, count)
        return diverse_order(units, count, lambda _, similar: 1 - similar, highest(-(units @ units.mean(0)), 1))
