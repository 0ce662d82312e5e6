"""Cells that a trained, plug-in scorer behind the tower rates highest."""

from __future__ import annotations

from torch import Tensor

from ...grid import Grid
from ._signals import required
from .base import Context, Strategy


class VisionSelector(Strategy):
    """VisionSelector (arXiv 2510.16598): two trained maps behind the merger, the model itself unchanged.

    The K highest scores of each item are kept; ties go to the lower index. The authors rank all images of a request
    together, so that one may lose more than another; here every item keeps its own budget, as with every strategy, and
    with one item the two are the same. The formula and the names of the weights are the authors'; their weights have
    not been run here.
    """

    name = "vision_selector"
    paper = "VisionSelector, arXiv 2510.16598"
    summary = "visual tokens that a plug-in scorer trained for the model rates highest, behind the vision tower"
    needs = frozenset({"selector"})
    floor = False

    def score(self, tokens: Tensor, grid: Grid, context: Context) -> Tensor:
        """Trained scores; see `Strategy.score`.

        Raises:
            ValueError: the model adapter has no weights.
        """
        return required(self.name, "selector", context.scores).to(tokens.device)
