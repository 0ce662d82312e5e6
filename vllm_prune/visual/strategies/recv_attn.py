"""Visual tokens that receive the most attention inside the vision tower."""

from __future__ import annotations

from torch import Tensor

from ...grid import Grid
from ._attention import AttentionOptions, received
from .base import Context, Strategy


class RecvAttn(Strategy):
    """Cells that receive most attention in late layers of the vision tower, by default in one.

    These are the dominant tokens of VisionZip (arXiv 2412.04467) for towers without a class token. Nothing is
    merged into them.
    """

    name = "recv_attn"
    paper = "dominant tokens of VisionZip, arXiv 2412.04467"
    summary = "visual tokens that receive most attention inside the vision tower"
    needs = frozenset({"tower_attention"})
    Options = AttentionOptions

    def score(self, tokens: Tensor, grid: Grid, context: Context) -> Tensor:
        """Attention received; see `Strategy.score`.

        Raises:
            ValueError: the model adapter did not capture the attention.
        """
        return received(self.name, tokens, grid, context)
