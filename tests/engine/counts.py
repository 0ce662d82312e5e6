"""How many tokens each item keeps, worked out anew from the words of the contract."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from .media import Visual


def share(total: int, sizes: Sequence[int]) -> list[int]:
    """Largest remainder in exact fractions; for totals where every share is at least 1."""
    total = min(total, sum(sizes))
    quotas = [Fraction(total * size, sum(sizes)) for size in sizes]
    counts = [int(quota) for quota in quotas]
    assert min(counts) >= 1, "the tests share totals large enough for all items"
    by_remainder = sorted(range(len(sizes)), key=lambda i: (counts[i] - quotas[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def budgets(visual: Visual, sizes: dict[str, list[int]]) -> dict[str, list[tuple[str, int]]]:
    """(strategy, K) of every item, from the request's `visual` object as the contract words it."""
    visual = visual or {"keep": 1.0}
    plans: dict[str, list[tuple[str, int]]] = {}
    shared: list[tuple[str, int]] = []
    for modality, items in sizes.items():
        part = visual.get(modality, {})
        own = part or {}
        strategy = own.get("strategy") or visual.get("strategy", "none")
        source = own if {"keep", "max_tokens"} & set(own) else visual
        plans[modality] = [(strategy, size) for size in items]
        if part is None:
            continue
        if source.get("keep") is not None:
            ratio = Decimal(str(source["keep"]))
            plans[modality] = [(strategy, max(1, int(ratio * size))) for size in items]
        elif source is own:
            counts = share(own["max_tokens"], items)
            plans[modality] = [(strategy, count) for count in counts]
        elif "max_tokens" in source:
            shared += [(modality, i) for i in range(len(items))]
    counts = share(visual["max_tokens"], [sizes[m][i] for m, i in shared]) if shared else []
    for (modality, i), count in zip(shared, counts, strict=True):
        plans[modality][i] = (plans[modality][i][0], count)
    return plans


def spread(total: int, sizes: Sequence[int]) -> list[int]:
    """Shares of the runs of one item by their size; where there are enough, each run has one at least."""
    if total < len(sizes):
        quotas = [Fraction(total * size, sum(sizes)) for size in sizes]
        counts = [int(quota) for quota in quotas]
        by_remainder = sorted(range(len(sizes)), key=lambda i: (counts[i] - quotas[i], i))
        for i in by_remainder[: total - sum(counts)]:
            counts[i] += 1
        return counts
    return share(total, sizes)
