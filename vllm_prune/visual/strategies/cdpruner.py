"""Varied visual tokens, more of them where they have to do with the question."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...grid import Grid
from ._text import similarity_to_text
from .base import Context, Strategy, best, best_per_frame
from .maths import banded, spread_to_one, unit_rows, volume_gains

# Cells that are compared with each other where there are too many picks for the whole item.
_SEGMENT = 256
# How many times its even share a segment may take from the others.
_STRETCH = 2
# Picks over the whole item, which are made one after the other.
_WHOLE = 64


class CdPruner(Strategy):
    """CDPruner (arXiv 2506.10967, section 3): greedy MAP inference of a DPP whose kernel depends on the question.

    The relevance of a visual token is its mean cosine to the embeddings of the last user message's text, scaled to 0 to
    1 over the item; the kernel is the cosine of two visual tokens times their relevances. The authors compare with a
    text encoder where the vision tower has one; here, as for their models without, the text is embedded by the language
    model's own table. Their code takes CLIP's cosines negative, as these point the other way; here none are turned.

    Up to 64 picks are made over the whole item, as in the paper. More are made in every frame, and in every band of at
    most 256 cells of a larger frame, at the same time, as if these had nothing in common; of all picks those that gain
    most are kept, at most twice its even share of a segment.
    """

    name = "cdpruner"
    paper = "CDPruner, arXiv 2506.10967, section 3"
    summary = "visual tokens that are unlike each other and have to do with the question (conditional DPP)"
    needs = frozenset({"text"})

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`."""
        bands = -(-grid.per_frame // _SEGMENT)
        segments = grid.frames * bands
        if count <= _WHOLE or segments == 1:
            gains = self._gains(tokens, Grid(1, 1, grid.tokens), 1, count, context)
        else:
            gains = self._gains(tokens, grid, bands, _STRETCH * -(-count // segments), context)
        return best(gains, count, grid.frames)

    def select_frames(self, tokens: Tensor, grid: Grid, per_frame: Sequence[int], context: Context) -> Tensor:
        """See `Strategy.select_frames`."""
        bands = -(-grid.per_frame // _SEGMENT)
        steps = max(per_frame) if bands == 1 else _STRETCH * -(-max(per_frame) // bands)
        return best_per_frame(self._gains(tokens, grid, bands, steps, context), per_frame)

    def _gains(self, tokens: Tensor, grid: Grid, bands: int, steps: int, context: Context) -> Tensor:
        """What each cell gained when it was picked, float32 [M], -inf where it was not."""
        similar, _ = similarity_to_text(self.name, tokens, context)
        weights, valid = banded(spread_to_one(similar.mean(1))[:, None], grid, bands)
        rows, _ = banded(unit_rows(tokens), grid, bands)
        gains = volume_gains(rows, weights.squeeze(2), min(steps, rows.shape[1]), valid)
        return gains.view(grid.frames, -1)[:, : grid.per_frame].flatten()
