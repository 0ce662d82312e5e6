"""Visual tokens to which the projector reacts most, and that are unlike each other."""

from __future__ import annotations

from torch import Tensor

from ...grid import Grid
from ._signals import required
from .base import Context, Strategy
from .maths import diverse_order, sketch, spread_to_one


class Zoo(Strategy):
    """ZOO-Prune (arXiv 2509.24837, section 3): zeroth-order sensitivity of the projector, and diversity.

    The sensitivity of a visual token is how far the projector's output moves when its input moves a little, estimated
    by central differences along a few random directions (see `tower.projector`), and scaled to 0 to 1 over the item.
    The first pick is the most sensitive; each next one has the largest sensitivity times distance, one minus the
    cosine, to the nearest of those before. The first 32 are picked one after the other, as the authors do with all, and
    the others in 32 blocks (`maths.diverse_order`), on a 128-wide sketch of the cells. No floor per frame is promised,
    as the method has none.
    """

    name = "zoo"
    paper = "ZOO-Prune, arXiv 2509.24837, section 3"
    summary = "visual tokens to which the model's projector is most sensitive, and that are unlike each other"
    needs = frozenset({"projector"})
    floor = False

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`.

        Raises:
            ValueError: the model adapter did not measure the sensitivity.
        """
        importance = spread_to_one(required(self.name, "projector", context.sensitivity).to(tokens.device))
        return diverse_order(sketch(tokens), count, lambda index, similar: importance[index] * (1 - similar))
