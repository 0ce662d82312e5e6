"""KeyDiff: keys that point away from the mean direction."""

from __future__ import annotations

from torch.nn.functional import cosine_similarity, normalize

from .base import KvStrategy, LayerView, Scores


class KeyDiff(KvStrategy):
    """No attention needed: the most distinctive keys of each head."""

    name = "keydiff"
    paper = "KeyDiff, arXiv 2504.15364, section 3"
    summary = "keys least like the average key"

    def score(self, view: LayerView) -> Scores:
        """Minus the cosine with the mean of the normalised keys."""
        anchor = normalize(view.keys, dim=-1).mean(dim=1, keepdim=True)
        return Scores(-cosine_similarity(view.keys, anchor, dim=-1))
