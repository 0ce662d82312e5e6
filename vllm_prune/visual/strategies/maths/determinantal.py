"""Greedy maximisation of a determinant: a subset that is important and varied at once."""

from __future__ import annotations

import torch
from torch import Tensor

from .vectors import quantise

RIDGE = 2.0**-10
"""Added to each unit row's product with itself: where rows span no more dimensions, what is left decides by weight."""
_SMALLEST = 1e-12
# Rows of a segment whose products are taken all at once, which is faster than pick by pick.
_AT_ONCE = 512


def volume_gains(rows: Tensor, weights: Tensor, steps: int, valid: Tensor | None = None) -> Tensor:
    """Greedy MAP inference of a determinantal point process (Chen et al. 2018) in S segments at once.

    The kernel is diag(w) (X X^T + RIDGE I) diag(w). Each pick is the row that raises its determinant most. The factor
    by which it does never grows from pick to pick, so the first k picks of a segment are its k highest gains, and where
    segments have nothing in common the highest gains of all are the greedy choice over the whole.

    Args:
        rows: X, unit rows, float32 [S, n, D].
        weights: w, in [0, 1], float32 [S, n].
        steps: picks per segment, 1 to n.
        valid: bool [S, n], False for padding; at least one True per segment.

    Returns:
        Gains, float32 [S, n]: what is left of a row's kernel entry, given the picks before, when it was picked; -inf
        where it was not.
    """
    segments, n, _ = rows.shape
    offsets = torch.arange(segments, device=rows.device) * n
    left = (1 + RIDGE) * weights.square()
    if valid is not None:
        left = left.masked_fill(~valid, -torch.inf)
    factors = rows.new_zeros(segments, n, steps)
    products = (rows @ rows.mT).flatten(0, 1) if n <= _AT_ONCE else None
    gains, picks = rows.new_empty(steps, segments), torch.empty(steps, segments, dtype=torch.int64, device=rows.device)
    for step in range(steps):
        gains[step], picks[step] = quantise(left).max(1)
        chosen = picks[step] + offsets
        if products is None:
            product = (rows @ rows.flatten(0, 1)[chosen][:, :, None]).squeeze(2)
        else:
            product = products[chosen]
        entries = weights * weights.flatten()[chosen][:, None] * product
        before = factors[..., :step]
        entries -= (before @ before.flatten(0, 1)[chosen][:, :, None]).squeeze(2)
        factor = entries / left.flatten()[chosen].clamp_min(_SMALLEST).sqrt()[:, None]
        factors[..., step] = factor
        # No rounding may take away more than the ridge leaves; -inf stays.
        fewer = torch.maximum(left - factor.square(), RIDGE * weights.square())
        left = torch.where(left.isneginf(), left, fewer).scatter_(1, picks[step][:, None], -torch.inf)
    picked = torch.full_like(left, -torch.inf)
    # A segment with nothing left repeats a pick with gain -inf; the maximum keeps the real one.
    return picked.scatter_reduce_(1, picks.T, gains.T, "amax")
