"""Strategies written out in float64, loops and all, independent of the product's code."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def max_sum(rows: Array, count: int) -> list[int]:
    """ToDRE's second version: the largest sum of distances to all picks before."""
    cosine = unit(rows) @ unit(rows).T
    picks = [int(cosine.mean(1).argmin())]
    while len(picks) < count:
        total = [-1.0 if i in picks else sum(1 - cosine[i, j] for j in picks) for i in range(len(rows))]
        picks.append(int(np.argmax(total)))
    return sorted(picks)


def k_center(rows: Array, count: int) -> list[int]:
    """ToDRE's first version: the farthest from the nearest pick."""
    cosine = unit(rows) @ unit(rows).T
    picks = [int(cosine.mean(1).argmin())]
    while len(picks) < count:
        reach = [-1.0 if i in picks else min(1 - cosine[i, j] for j in picks) for i in range(len(rows))]
        picks.append(int(np.argmax(reach)))
    return sorted(picks)


def relevance(rows: Array, importance: Array, count: int, balance: float) -> list[int]:
    """Maximal marginal relevance, as IDPruner has it."""
    cosine = unit(rows) @ unit(rows).T
    scaled = (importance - importance.min()) / (importance.max() - importance.min())
    picks = [int(scaled.argmax())]
    while len(picks) < count:
        values = [
            -math.inf if i in picks else balance * scaled[i] - (1 - balance) * max(cosine[i, j] for j in picks)
            for i in range(len(rows))
        ]
        picks.append(int(np.argmax(values)))
    return sorted(picks)


def vcast(frames: Array, count: int, temperature: float = 0.7) -> list[int]:
    """V-CAST of [T, P, D] for budgets that fill no frame."""
    length, cells = frames.shape[:2]
    means = unit(frames.mean(1))
    curvature = np.ones(length)
    for t in range(1, length - 1):
        before, after = means[t] - means[t - 1], means[t + 1] - means[t]
        curvature[t] = 1 - before @ after / np.linalg.norm(before) / np.linalg.norm(after)
    weights = np.exp(curvature / temperature) / np.exp(curvature / temperature).sum()
    raw = weights * (count - length)
    shares = 1 + np.floor(raw).astype(int)
    for t in np.argsort(-(raw - np.floor(raw)), kind="stable")[: count - shares.sum()]:
        shares[t] += 1
    assert shares.max() <= cells
    kept = []
    for t, share in enumerate(shares):
        norm = np.linalg.norm(frames[t], axis=1)
        score = 1 - unit(frames[t]) @ means[t] + (norm - norm.min()) / (norm.max() - norm.min() + 1e-6)
        kept += [int(t * cells + i) for i in np.argsort(-score, kind="stable")[:share]]
    return sorted(kept)


def lloyd(rows: Array, first: list[int], steps: int, medoids: bool) -> tuple[list[int], Array]:
    """k-means or k-medoids on unit rows; each group keeps its medoid. Medoids, and the group of each row."""
    units = unit(rows)
    kept, centers = list(first), units[first]
    for _ in range(steps + 1):
        owner = np.array([np.argmin(((row - centers) ** 2).sum(1)) for row in units])
        owner[kept] = range(len(kept))
        means = np.stack([units[owner == j].mean(0) for j in range(len(kept))])
        kept = [
            min((i for i in range(len(units)) if owner[i] == j), key=lambda i, j=j: (-(units[i] @ means[j]), i))
            for j in range(len(kept))
        ]
        centers = units[kept] if medoids else means
    return kept, owner


def farthest(rows: Array, first: int, count: int) -> list[int]:
    """Each next row is the farthest from all before."""
    cosine = unit(rows) @ unit(rows).T
    picks = [first]
    while len(picks) < count:
        reach = [-1.0 if i in picks else min(1 - cosine[i, j] for j in picks) for i in range(len(rows))]
        picks.append(int(np.argmax(reach)))
    return picks


def density_peaks(rows: Array, count: int, neighbours: int) -> list[int]:
    """DPC-kNN, without noise; a row is the nearest to itself."""
    distance = ((rows[:, None] - rows[None]) ** 2).sum(2)
    n = len(rows)
    density = [math.exp(-np.sort(distance[i])[:neighbours].mean()) for i in range(n)]
    score = []
    for i in range(n):
        denser = [distance[i, j] for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        score.append(density[i] * math.sqrt(min(denser) if denser else distance.max()))
    return sorted(range(n), key=lambda i: (-score[i], i))[:count]


def absorbed(rows: Array, kept: list[int], owner: dict[int, int], least: float) -> dict[int, Array]:
    """Kept rows mixed with the mean of those that `owner` sends to them."""
    result = {}
    for one in kept:
        taken = [rows[i] for i, target in owner.items() if target == one]
        own = max(least, 1 / (len(taken) + 1)) if taken else 1.0
        result[one] = own * rows[one] + ((1 - own) * np.mean(taken, axis=0) if taken else 0)
    return result


def sinkhorn(cost: Array, blur: float = 0.1, steps: int = 3000) -> Array:
    """The plan that alternate fits of rows and columns arrive at."""
    plan = np.exp(-cost / blur)
    for _ in range(steps):
        plan = plan / plan.sum(0, keepdims=True) / plan.shape[1]
        plan = plan / plan.sum(1, keepdims=True) / plan.shape[0]
    return plan
