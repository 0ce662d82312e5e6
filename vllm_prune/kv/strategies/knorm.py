"""Key norms: small keys tend to draw attention."""

from __future__ import annotations

from .base import KvStrategy, LayerView, Scores


class Knorm(KvStrategy):
    """Keys of small norm are kept."""

    name = "knorm"
    paper = "L2 norm, arXiv 2406.11430, section 3"
    summary = "keys of small norm"

    def score(self, view: LayerView) -> Scores:
        """Minus the norm."""
        return Scores(-view.keys.norm(dim=-1))
