"""The rows of the highest scores, in order."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_best(scores: Tensor, count: int, window: int) -> Tensor:
    """Rows of the `count - window` highest scores among all but the last `window` rows, and those last rows.

    Args:
        scores: [H, L] float.
        count: C, at least `window`, at most L.
        window: W.

    Returns:
        int64 [H, C], ascending; ties go to the lower row.
    """
    heads, rows = scores.shape
    free = rows - window
    last = torch.arange(free, rows, device=scores.device).expand(heads, window)
    return torch.cat([highest(scores[:, :free], count - window), last], dim=1)


def highest(scores: Tensor, count: int) -> Tensor:
    """Places of each head's `count` highest scores, int64 [H, count], ascending; ties go to the lower place."""
    if scores.device.type == "cpu" and 0 < count < scores.shape[1]:
        threshold = scores.kthvalue(scores.shape[1] - count + 1, dim=1, keepdim=True).values
        above, equal = scores > threshold, scores == threshold
        keep = above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))
        places = keep.nonzero()[:, 1]
        # Not so many where a score is not a number.
        if len(places) == len(scores) * count:
            return places.view(len(scores), count)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return best.sort(dim=1).values
