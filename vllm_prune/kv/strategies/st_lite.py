"""ST-Lite's two branches: attention of a visual token's neighbourhood, and a gate for what the next screen repeats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from ._pooling import Kernel, average_pool
from ._probe import WindowOptions, probe_weights
from ._screens import cells
from .base import KvStrategy, LayerView, Scores, summed_attention

STRIDE = 1 << 20
"""More than a screen has rows, or columns."""


class StLiteOptions(WindowOptions):
    """Options of `st_lite`.

    Attributes:
        alpha: weight of the neighbourhood's attention beside a row's own.
        radius: visual tokens that a neighbourhood reaches in every direction.
        pooling: kernel of the average pooling of attention over neighbouring rows, odd.
        similar: cosine of two values from which a visual token repeats another.
    """

    alpha: Annotated[float, Field(ge=0)] = 1.0
    radius: Annotated[int, Field(ge=0, le=4)] = 1
    pooling: Kernel = 5
    similar: Annotated[float, Field(ge=-1, le=1)] = 0.9


class StLite(KvStrategy):
    """The paper's branches, with formulas of ours: nothing but its abstract was at hand.

    Component-centric spatial saliency: a visual token counts by what its neighbourhood on the screen receives, too, so
    that the tokens of a button stay together. Trajectory-aware semantic gating: a visual token of an earlier screenshot
    goes last if the next one shows the same near its place. Compared are values, as keys turn with their positions.
    """

    name = "st_lite"
    paper = "after ST-Lite, arXiv 2603.00188: its two branches by formulas of ours"
    summary = "attended rows with their neighbourhood on the screen; what the next screenshot repeats goes last"
    needs = frozenset({"queries", "values", "coordinates"})
    Options = StLiteOptions
    options: StLiteOptions

    def score(self, view: LayerView) -> Scores:
        """Attention is scored anew at every compaction; neighbourhoods and repeats are the prompt's."""
        free = view.rows - view.window
        attention = summed_attention(view, probe_weights(view, self.options)).mean(dim=1)
        if view.first:
            near, repeated = self._neighbourhoods(view, attention), self._repeated(view)
        else:
            near, repeated = view.carried["near"], view.carried["repeated"]
        attention[:, :free] = average_pool(attention[:, :free], self.options.pooling)
        scores = attention + self.options.alpha * near
        # Below zero, and in the same order.
        scores = torch.where(repeated > 0, -1 / (1 + scores), scores)
        return Scores(scores, {"near": near, "repeated": repeated})

    def _neighbourhoods(self, view: LayerView, attention: Tensor) -> Tensor:
        """Mean attention of the visual tokens around each one, itself included, [H, L]; 0 for text."""
        near = torch.zeros_like(attention)
        for item in view.items:
            places, received = cells(view, item), attention[:, item]
            total, count = torch.zeros_like(received), torch.zeros_like(received[0])
            for index, there in self._around(places, places):
                total += received[:, index] * there
                count += there
            near[:, item] = total / count
        return near

    def _repeated(self, view: LayerView) -> Tensor:
        """1 for visual tokens that the next screenshot shows again near the same place, [H, L]."""
        flags = torch.zeros_like(view.keys[..., 0])
        if len(view.items) < 2:
            return flags
        values = view.values()
        later = normalize(values[:, view.items[-1]], dim=-1)
        for item, following in zip(view.items[-2::-1], view.items[:0:-1], strict=True):
            shown = normalize(values[:, item], dim=-1)
            again = torch.zeros_like(flags[:, item], dtype=torch.bool)
            for index, there in self._around(cells(view, item), cells(view, following)):
                cosine = (shown * later[:, index]).sum(dim=-1)
                again |= (cosine >= self.options.similar) & there
            flags[:, item] = again.to(flags.dtype)
            later = shown
        return flags

    def _around(self, places: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For every step inside the radius, the token of `others` that stands so far from each of `places`.

        Args:
            places: int64 [3, n] cells.
            others: int64 [3, m] cells, of another item or of the same.

        Yields:
            int64 [n] index among the others, and bool [n], whether there is one.
        """
        sought, (held, order) = _number(places), _number(others).sort()
        for row in range(-self.options.radius, self.options.radius + 1):
            for column in range(-self.options.radius, self.options.radius + 1):
                target = sought + row * STRIDE + column
                at = torch.searchsorted(held, target).clamp(max=len(held) - 1)
                yield order[at], held[at] == target


def _number(places: Tensor) -> Tensor:
    """One number per cell, int64 [n]; neighbours' differ by 1 or by STRIDE."""
    frame, row, column = places
    # Room for steps to either side of the screen.
    return (frame * STRIDE + row + STRIDE // 2) * STRIDE + column + STRIDE // 2
