"""Random rows: the baseline that every strategy has to beat."""

from __future__ import annotations

import torch

from .base import KvStrategy, LayerView, Scores


class Random(KvStrategy):
    """A token's score depends on the prompt, the layer, the head and its position only."""

    name = "random"
    paper = "baseline"
    summary = "random rows, seeded by the prompt"

    def score(self, view: LayerView) -> Scores:
        """Score by an integer hash, so that a later compaction ranks the survivors as before."""
        heads = torch.arange(len(view.keys), device=view.keys.device)[:, None] + view.head_offset
        mixed = view.positions * 2654435761 + view.layer * 974711 + heads * 31337 + view.seed % (1 << 31)
        mixed = (mixed ^ (mixed >> 15)) * 2246822519 & 0xFFFFFFFF
        mixed = (mixed ^ (mixed >> 13)) * 3266489917 & 0xFFFFFFFF
        return Scores(((mixed ^ (mixed >> 16)) & 0xFFFFFF).float())
