"""Visual exit: behind a layer, visual tokens have given what they had to the text, and late layers drop their rows."""

from __future__ import annotations

import torch

from ._depth import DepthBudget, whole_first_group
from ._probe import WindowOptions, probe_weights
from .base import TEXT, KvStrategy, LayerView, Scores, summed_attention


class VisualExit(KvStrategy):
    """All rows in the first group of layers; in later ones all text, and what is left of the budget of the visual rows.

    Evicts once, after prefill: what is decoded is text, which every layer keeps.
    """

    name = "visual_exit"
    paper = "after ToDRE, arXiv 2505.18757, stage 2; untrained, with a fixed layer"
    summary = "everything in early layers; in late ones all text and no, or few, visual tokens"
    needs = frozenset({"queries"})
    layered = True
    once = True
    Options = WindowOptions
    options: WindowOptions

    def group_counts(self, budget: DepthBudget) -> tuple[int, ...]:
        """M in the first group; in later ones what makes the mean over all layers C, at least all text, at most M."""
        return whole_first_group(budget)

    def score(self, view: LayerView) -> Scores:
        """Text above all; visual tokens by the attention that the window gives them."""
        attention = summed_attention(view, probe_weights(view, self.options)).mean(dim=1)
        return Scores(torch.where(view.media == TEXT, float("inf"), attention))
