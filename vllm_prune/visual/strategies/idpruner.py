"""Important cells that are not alike."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from ...grid import Grid
from ...signals import VisualSignal
from ._attention import AttentionOptions
from ._signals import required
from .base import Context, Strategy
from .maths import diverse_order, sketch, spread_to_one

_SIGNALS: dict[str, VisualSignal] = {"selector": "selector", "attention": "tower_attention"}


class IdPrunerOptions(AttentionOptions):
    """Options of `idpruner`.

    Attributes:
        importance: what counts as important. "selector" are the scores of VisionSelector's trained weights, which is
            the authors' choice and needs them configured; "attention" is what a visual token receives in a late layer
            of the tower; "norm" is the length of its feature, which needs nothing.
        balance: weight of importance; what a token has in common with those picked before has the rest.
    """

    importance: Literal["selector", "attention", "norm"] = "norm"
    balance: Annotated[float, Field(ge=0, le=1)] = 0.5


class IdPruner(Strategy):
    """IDPruner: maximal marginal relevance over the whole item.

    Importance is scaled to 0 to 1; the next pick has the largest balance * importance - (1 - balance) * cosine to the
    most similar pick before. The first 32 are picked one after the other, as the authors do with all, and the others in
    32 blocks (`maths.diverse_order`), on a 128-wide sketch of the cells. No floor per frame is promised.
    """

    name = "idpruner"
    paper = "IDPruner, as in Tencent's AngelSlim; importance from VisionSelector, arXiv 2510.16598, only if configured"
    summary = "important visual tokens that are unlike each other (maximal marginal relevance)"
    needs = frozenset({"selector", "tower_attention"})
    floor = False
    Options = IdPrunerOptions
    options: IdPrunerOptions

    def wanted(self) -> frozenset[VisualSignal]:
        """The signal that the option names."""
        signal = _SIGNALS.get(self.options.importance)
        return frozenset() if signal is None else frozenset({signal})

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`.

        Raises:
            ValueError: the signal that the option names was not given.
        """
        importance, balance = spread_to_one(self._importance(tokens, context)), self.options.balance
        return diverse_order(
            sketch(tokens), count, lambda index, similar: balance * importance[index] - (1 - balance) * similar
        )

    def _importance(self, tokens: Tensor, context: Context) -> Tensor:
        if self.options.importance == "norm":
            return tokens.float().norm(dim=-1)
        importance = context.scores if self.options.importance == "selector" else context.tower_attention
        return required(self.name, _SIGNALS[self.options.importance], importance).to(tokens.device)
