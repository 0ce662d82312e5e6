"""The formulas of the papers written out in float64, loops and all, independent of the product's code."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from vllm_prune.kv.strategies.base import TEXT, LayerView

Array = np.ndarray


def attention(view: LayerView) -> Array:
    """[H, G, W, L]: each window query's softmax over the rows that it may see."""
    assert view.queries is not None
    keys = view.keys.double().numpy()
    heads, rows = keys.shape[:2]
    queries = view.queries.double().numpy()
    window = len(queries)
    group = queries.shape[1] // heads
    found = np.zeros((heads, group, window, rows))
    for h in range(heads):
        for g in range(group):
            for w in range(window):
                seen = rows - window + w + 1
                logits = keys[h, :seen] @ queries[w, h * group + g] * view.scale
                weights = np.exp(logits - logits.max())
                found[h, g, w, :seen] = weights / weights.sum()
    return found


def pooled(scores: Array, kernel: int, most: bool = False) -> Array:
    """Mean (outside is zero) or maximum over neighbours, along the last axis."""
    half, count = kernel // 2, scores.shape[-1]
    out = np.zeros_like(scores)
    for i in range(count):
        part = scores[..., max(0, i - half) : i + half + 1]
        out[..., i] = part.max(-1) if most else part.sum(-1) / kernel
    return out


def gui_kv(
    view: LayerView, gamma: str, alpha: float = 2, tau: float = 3.5, kernel: int = 5, rank: int = 4, flagged: str = "1",
    residual: bool = False,
) -> Array:  # fmt: skip
    """[H, L - W] scores of GUI-KV, the group's mean; redundant rows are minus one, below all others."""
    heads, rows = view.keys.shape[:2]
    free = rows - view.window
    summed = attention(view).sum(2)[..., :free]
    scores = pooled(summed.mean(1), kernel)
    media = view.media[0].numpy()
    last = int(media.max())
    if last == TEXT:
        return scores
    current = np.flatnonzero(media == last)
    source = view.saliency if residual else view.normed_saliency
    assert source is not None
    norms = source[0].double().numpy()[current]
    z = (norms - norms.mean()) / (norms.std(ddof=1) + 1e-5 * norms.mean())
    share = np.exp(z / tau) / np.exp(z / tau).sum()
    for place, value in zip(current, share, strict=True):
        if place < free:
            scores[:, place] += alpha * value
    earlier = np.flatnonzero((media >= 0) & (media < last))
    zeroed = math.floor(Fraction(flagged) * (1 - Fraction(gamma)) * len(earlier))
    for h in range(heads):
        keys = view.keys[h].double().numpy()
        basis = np.linalg.qr(keys[current].T)[0][:, :rank]
        rest = [np.linalg.norm(keys[i] - basis @ (basis.T @ keys[i])) for i in earlier]
        for place in np.argsort(rest, kind="stable")[:zeroed]:
            if earlier[place] < free:
                scores[h, earlier[place]] = -1
    return scores


def r_kv(view: LayerView, balance: float = 0.07) -> Array:
    """[H, L - W] scores of R-KV."""
    assert view.queries is not None
    heads, rows = view.keys.shape[:2]
    free, group = rows - view.window, view.queries.shape[1] // heads
    out = np.zeros((heads, free))
    for h in range(heads):
        keys = view.keys[h].double().numpy()
        attended = np.zeros(free)
        for query in view.queries.double().numpy():
            logits = (keys[:free] @ query[h * group : (h + 1) * group].T * view.scale).max(1)
            weights = np.exp(logits - logits.max())
            attended += weights / weights.sum() / view.window
        unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        cosine = unit @ unit.T
        for i in range(rows):
            cosine[i, i] = 0
            close = [j for j in range(rows) if cosine[i, j] > 0.5]
            cosine[i, close[-1] if close else 0] = 0
        mean = cosine.sum(0) / rows
        redundancy = np.exp(mean) / np.exp(mean).sum()
        out[h] = balance * pooled(attended, 7, most=True) - (1 - balance) * redundancy[:free]
    return out


def expected_attention(view: LayerView, horizon: int = 512) -> Array:
    """[H, L] scores of Expected Attention without sinks, by rotating every query to every future position."""
    assert view.queries is not None
    keys, values = view.keys.double().numpy(), view.values().double().numpy()
    heads, rows, dim = keys.shape
    queries = view.queries.double().numpy()
    window = len(queries)
    group = queries.shape[1] // heads
    frequency = 10000.0 ** (-np.arange(dim // 2) / (dim // 2))
    future = range(1, min(horizon, 63) + 1)
    out = np.zeros((heads, rows))

    def turn(vector: Array, steps: int) -> Array:
        pairs = (vector[: dim // 2] + 1j * vector[dim // 2 :]) * np.exp(1j * steps * frequency)
        return np.concatenate([pairs.real, pairs.imag])

    average = np.mean([[turn(unit, steps) for unit in np.eye(dim)] for steps in future], axis=0).T
    for h in range(heads):
        for g in range(group):
            placed = np.stack([turn(queries[w, h * group + g], window - 1 - w) for w in range(window)])
            mean = average @ placed.mean(0)
            spread = average @ np.cov(placed.T, bias=True) @ average.T
            logits = keys[h] @ mean * view.scale + view.scale**2 / 2 * np.einsum(
                "ld,de,le->l", keys[h], spread, keys[h]
            )
            weights = np.exp(logits - logits.max())
            out[h] += weights / weights.sum() * np.linalg.norm(values[h], axis=1) / group
    return out
