"""PyramidKV: more rows for early layers, which spread their attention, fewer for late ones, which gather it."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate
from typing import Annotated

from pydantic import Field

from ._depth import DepthBudget
from .snapkv import SnapKv, SnapKvOptions


class PyramidKvOptions(SnapKvOptions):
    """Options of `pyramid_kv`.

    Attributes:
        beta: how many times fewer scored rows the last layer keeps than the average one; 1 for the same everywhere.
    """

    beta: Annotated[int, Field(ge=1, le=1000)] = 20


class PyramidKv(SnapKv):
    """SnapKV's scores, and a budget that falls with depth, in as many steps as there are groups of layers."""

    name = "pyramid_kv"
    paper = "PyramidKV, arXiv 2406.02069, section 4.2"
    summary = "as `snapkv`, more in early layers and less in late ones"
    layered = True
    Options = PyramidKvOptions
    options: PyramidKvOptions

    def group_counts(self, budget: DepthBudget) -> tuple[int, ...]:
        """The mean of the paper's linear ramp over each group's layers.

        The ramp falls from `2 (C - W) - (C - W) / beta` scored rows in the first layer to `(C - W) / beta` in the last;
        where that is more than the prompt has, it begins there and falls less, as in the authors' code. Rows that
        rounding leaves over go to the first groups, none above the one before, so that the mean over layers is C but
        for less than one row. Where the budget evicts nothing of the prompt all layers keep the same.
        """
        total, scored = sum(budget.layers), budget.count - budget.window
        if budget.count >= budget.prompt or len(budget.layers) == 1:
            return super().group_counts(budget)
        most = min(2 * scored - Fraction(scored, self.options.beta), Fraction(budget.prompt - budget.window))
        fall = 2 * (most - scored) / (total - 1)
        ends = list(accumulate(budget.layers))
        middles = [Fraction(end + end - count - 1, 2) for end, count in zip(ends, budget.layers, strict=True)]
        counts = [budget.window + int(most - fall * middle) for middle in middles]
        left = total * budget.count - sum(map(int.__mul__, counts, budget.layers))
        for number, layers in enumerate(budget.layers):
            most_here = counts[number - 1] if number else budget.prompt
            more = min(left // layers, most_here - counts[number])
            counts[number] += more
            left -= more * layers
        return tuple(counts)
