"""What the tower looks at and the question asks for, and a varied rest."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...grid import Grid
from ._attention import received
from ._text import similarity_to_text
from .base import Context, NoOptions, Strategy
from .maths import highest, sketch, spread_to_one

_OVER_TEXT, _OVER_CELLS, _POWER = 0.05, 0.01, 2.5
# Share of the cells that count as asked for; the others count for a tenth.
_TOP, _OTHERS = 0.005, 0.1
_SMALLEST = 1e-6
# Duplicates that are dropped in one go, or one of so many that are left where that is more.
_DROPS, _SHARE = 8, 8


class FlashVlmOptions(NoOptions):
    """Options of `flashvlm`.

    Attributes:
        balance: weight of the question; the tower's attention has the rest.
    """

    balance: Annotated[float, Field(ge=0, le=1)] = 0.5


class FlashVlm(Strategy):
    """FlashVLM (arXiv 2512.20561, section 3): half of K by saliency and relevance, half of what is least alike.

    - Relevance: over the text's tokens the mean of their cosines to a visual token, weighted by their softmax at
      temperature 0.05, cosines counting by the lengths of the text's embeddings. Over the visual tokens then a softmax
      at temperature 0.01, to the power of 2.5 and scaled to 0 to 1; all but the top 0.5% count for a tenth, and the
      result is scaled again.
    - Saliency: attention received in a late layer of the tower, scaled to 0 to 1.
    - The first half of K has the highest saliency^(1 - balance) * relevance^balance. The rest is a list, best first.
      Of those in its even places some that are most like one in an odd place are dropped, and the others of the even
      places move in front of those of the odd ones, the most alike first; and again, until the other half is left.

    Eight are dropped at a time, as in the authors' code, or an eighth of the rest where that is more; likeness is
    that of a 128-wide sketch. No floor per frame is promised, as the method has none.
    """

    name = "flashvlm"
    paper = "FlashVLM, arXiv 2512.20561, section 3"
    summary = "half: attended in the tower and asked for in the question; half: the rest without what is alike"
    needs = frozenset({"text", "tower_attention"})
    floor = False
    Options = FlashVlmOptions
    options: FlashVlmOptions

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`."""
        saliency = spread_to_one(received(self.name, tokens, grid, context))
        relevant = relevance(*similarity_to_text(self.name, tokens, context))
        # Logarithms, as most relevances are far below the step of `highest`.
        logs = saliency.clamp_min(_SMALLEST).log() * (1 - self.options.balance)
        logs = logs + relevant.clamp_min(_SMALLEST).log() * self.options.balance
        order = highest(logs, grid.tokens)
        half = max(1, count // 2)
        rest = order[half:]
        return torch.cat([order[:half], rest[unlike(sketch(tokens[rest]), count - half)]])


def relevance(similar: Tensor, lengths: Tensor) -> Tensor:
    """What a text says of each visual token, float32 [M] in 0 to 1, from cosines [M, L] and embeddings' lengths [L]."""
    weighted = similar * (lengths / lengths.max().clamp_min(1e-12))
    each = ((weighted / _OVER_TEXT).softmax(1) * weighted).sum(1)
    sharp = spread_to_one((each / _OVER_CELLS).softmax(0) ** _POWER)
    top = highest(sharp, max(1, -(-len(sharp) // round(1 / _TOP))))
    return spread_to_one((sharp * _OTHERS).index_put((top,), sharp[top]))


def unlike(units: Tensor, count: int) -> Tensor:
    """Rows that are left when those in even places that are most like one in an odd place are dropped, time and again.

    After every time the rows of the even places come first, the most alike in front, then those of the odd places.

    Args:
        units: unit rows, float32 [n, d].
        count: rows to leave, 0 to n.

    Returns:
        int64 [count], in the order that the last time left.
    """
    left = torch.arange(len(units), device=units.device)
    while len(left) > count:
        even, odd = units[left[::2]], units[left[1::2]]
        drops = min(len(left) - count, max(_DROPS, len(left) // _SHARE), len(even))
        likeness = (even @ odd.T).amax(1) if len(odd) else even.new_zeros(len(even))
        left = torch.cat([left[::2][highest(likeness, len(even))[drops:]], left[1::2]])
    return left
