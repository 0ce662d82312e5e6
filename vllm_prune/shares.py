"""Whole-number shares in proportion to weights: the one place for splitting a budget over items, frames or anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def largest_remainder(total: int, weights: Sequence[int], caps: Sequence[int], floor: int) -> list[int]:
    """Share `total` in proportion to `weights`, in whole numbers (Hamilton's method with bounds).

    A share lies between `floor` and its cap; what a bound takes or gives is shared by the others in
    proportion. Integer arithmetic throughout; the last units go to the largest remainders, ties to
    the earlier index. Weights that are all zero count as equal.

    Args:
        total: what to share.
        weights: non-negative.
        caps: upper bounds, one per weight.
        floor: lower bound of every share, lowered to a smaller cap.

    Raises:
        ValueError: no such shares exist, or a weight is negative.
    """
    lows = [min(floor, cap) for cap in caps]
    if len(weights) != len(caps) or not sum(lows) <= total <= sum(caps) or any(w < 0 for w in weights):
        raise ValueError(f"cannot share {total} over weights {list(weights)}, caps {list(caps)}, floor {floor}")
    counts = list(lows)
    free, left = list(range(len(caps))), total
    while free:
        parts = _parts(weights, free)
        whole = sum(parts.values())
        over = {i: left * w - caps[i] * whole for i, w in parts.items() if left * w > caps[i] * whole}
        under = {i: lows[i] * whole - left * w for i, w in parts.items() if left * w < lows[i] * whole}
        if not over and not under:
            rounded = _round(left, parts)
            return [rounded.get(i, n) for i, n in enumerate(counts)]
        # Only the side that is violated more is final; fixing it can still lift the other side over its bound.
        fixed = dict.fromkeys(over, 1) if sum(over.values()) >= sum(under.values()) else {}
        if sum(under.values()) >= sum(over.values()):
            fixed |= dict.fromkeys(under, 0)
        for i, at_cap in fixed.items():
            counts[i] = caps[i] if at_cap else lows[i]
            left -= counts[i]
        free = [i for i in free if i not in fixed]
    return counts


def _parts(weights: Sequence[int], indices: Iterable[int]) -> dict[int, int]:
    parts = {i: weights[i] for i in indices}
    return parts if any(parts.values()) else dict.fromkeys(parts, 1)


def _round(total: int, parts: dict[int, int]) -> dict[int, int]:
    whole = sum(parts.values())
    counts = {i: total * w // whole for i, w in parts.items()}
    by_remainder = sorted(parts, key=lambda i: (-(total * parts[i] % whole), i))
    for i in by_remainder[: total - sum(counts.values())]:
        counts[i] += 1
    return counts


def even_shares(total: int, parts: int, cap: int, floor: int = 0) -> list[int]:
    """Share `total` evenly over `parts`, each at most `cap`; see `largest_remainder`."""
    return largest_remainder(total, [1] * parts, [cap] * parts, floor)
