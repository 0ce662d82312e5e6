"""The means of groups of alike cells."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ...grid import Grid
from ._merging import MergingOptions, MergingStrategy, group_means
from .base import Context, Reduction
from .maths import cluster, diverse_order, highest, sketch


class VqTokenKmeansOptions(MergingOptions):
    """Options of `vqtoken_kmeans`, beside those of merging.

    Attributes:
        steps: how often means are computed anew.
    """

    steps: Annotated[int, Field(ge=0, le=50)] = 3


class VqTokenKmeans(MergingStrategy):
    """The codebook of VQToken (arXiv 2503.16980, section 3) without its trained attention: k-means over the whole item.

    Groups are formed on a 128-wide sketch of the unit tokens, from first centers that are far from each other. Each
    group becomes one token, the mean of its members' features, at the position of the member nearest to that mean.
    """

    name = "vqtoken_kmeans"
    paper = "after VQToken, arXiv 2503.16980, section 3; untrained"
    summary = "means of groups of alike visual tokens (merges)"
    floor = False
    Options = VqTokenKmeansOptions
    options: VqTokenKmeansOptions

    def reduce_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Reduction:
        """See `MergingStrategy.reduce_span`."""
        units = sketch(tokens)
        first = diverse_order(units, count, lambda _, similar: 1 - similar, highest(-(units @ units.mean(0)), 1))
        kept, owner = cluster(units, first, self.options.steps)
        return group_means(units, kept, owner)
