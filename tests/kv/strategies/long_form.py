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


def standardised(norms: Array) -> Array:
    """Distance from the mean in spreads, where the spread is more than rounding."""
    spread = norms.std(ddof=1)
    return (norms - norms.mean()) / spread * (spread / (spread + 3e-5 * norms.mean())) ** 2


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
    z = standardised(norms)
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


def cells(view: LayerView, rows: Array) -> list[tuple[int, int, int]]:
    """Frame, row and column of the visual tokens of an image that starts at one position."""
    assert view.coordinates is not None
    t, h, w = (axis[rows].tolist() for axis in view.coordinates.numpy())
    return [(0, deep - at, across - at) for at, deep, across in zip(t, h, w, strict=True)]


def screens(view: LayerView) -> list[Array]:
    """Rows of each screenshot."""
    media = view.media[0].numpy()
    return [np.flatnonzero(media == item) for item in range(int(media.max()) + 1)]


def shares_of(amounts: Array) -> Array:
    return amounts / amounts.sum()


def star_kv(
    view: LayerView,
    balance: float = 0.5,
    fading: float = 0.1,
    memory: float = 0.9,
    heat: tuple[float, float] = (0.75, 1.25),
) -> Array:
    """[L - W] scores of STaR-KV, one for all heads."""
    heads, rows = view.keys.shape[:2]
    free, shown = rows - view.window, screens(view)
    raw = attention(view).sum(2).mean(1)
    boost, stale = np.zeros(rows), np.zeros((heads, rows))
    information = np.zeros(heads)
    if shown:
        current = shown[-1]
        assert view.normed_saliency is not None
        norms = view.normed_saliency[0].double().numpy()[current]
        z = standardised(norms)
        boost[current] = 2 * np.exp(z / 3.5) / np.exp(z / 3.5).sum()
        bins = max(1, min(8, int((len(current) / 16) ** 0.5)))
        parts = _parts_of_screen(view, current, bins)
        information = np.array([_information(raw[h, current], parts) for h in range(heads)])
    for h in range(heads):
        patterns = []
        for screen in shown:
            pattern = np.zeros(64)
            for row, part in zip(screen, _parts_of_screen(view, screen, 8), strict=True):
                pattern[part] += raw[h, row]
            patterns.append(shares_of(pattern))
        if len(shown) < 2:
            continue
        mean = patterns[0]
        for pattern in patterns[1:-1]:
            mean = memory * mean + (1 - memory) * pattern
        stability = patterns[-1] @ mean / np.linalg.norm(patterns[-1]) / np.linalg.norm(mean)
        for number, screen in enumerate(shown[:-1]):
            stale[h, screen] = (len(shown) - 1 - number) * stability
    weights = (1 - balance) / heads + balance * shares_of(np.exp(information))
    total = np.zeros(free)
    for h in range(heads):
        scores = (pooled(raw[h, :free], 5) + boost[:free]) * np.exp(-fading * stale[h, :free])
        share = shares_of(scores)
        level = -(share * np.log(share)).sum() / np.log(free)
        total += weights[h] * shares_of(share ** (1 / (heat[0] + (heat[1] - heat[0]) * level)))
    return total


def _parts_of_screen(view: LayerView, rows: Array, bins: int) -> list[int]:
    places = np.array(cells(view, rows))[:, 1:]
    low, high = places.min(0), places.max(0)
    deep, across = high - low + 1
    return [int(d * bins // deep) * bins + int(a * bins // across) for d, a in places - low]


def _information(received: Array, parts: list[int]) -> float:
    """Mutual information of the class of attention, of which there are eight, and the part of the screen."""
    count = len(received)
    classes = {int(row): place * 8 // count for place, row in enumerate(np.argsort(received, kind="stable"))}
    pairs = [(classes[row], parts[row]) for row in range(count)]
    found = 0.0
    for pair in set(pairs):
        both = pairs.count(pair) / count
        alone = sum(one[0] == pair[0] for one in pairs) / count * sum(one[1] == pair[1] for one in pairs) / count
        found += both * math.log(both / alone)
    return found


def st_lite(view: LayerView, gamma: str, alpha: float = 1, share: str = "1") -> Array:
    """[H, L - W] scores of ST-Lite, the group's mean; repeated rows are minus one, below all others."""
    heads, rows = view.keys.shape[:2]
    free, shown = rows - view.window, screens(view)
    scores = pooled(attention(view).sum(2).mean(1)[:, :free], 5)
    if not shown:
        return scores
    *before, current = shown
    assert view.normed_saliency is not None
    norm = dict(zip(cells(view, current), view.normed_saliency[0].double().numpy()[current], strict=True))
    steps = [(down, along) for down in (-1, 0, 1) for along in (-1, 0, 1)]
    salient = [
        value + sum(norm.get((frame, row + down, column + along), 0.0) for down, along in steps) / 9
        for (frame, row, column), value in norm.items()
    ]
    powers = np.exp(standardised(np.array(salient)))
    scores[:, [row for row in current if row < free]] += alpha * (powers / powers.sum())[current < free]
    earlier = np.concatenate([np.array([], dtype=int), *before])
    last = math.floor(Fraction(share) * (1 - Fraction(gamma)) * len(earlier))
    for h in range(heads):
        values = view.values()[h].double().numpy()
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        likeness = [max(unit[i] @ unit[j] for j in current) for i in earlier]
        for place in np.argsort(-np.array(likeness), kind="stable")[:last]:
            if earlier[place] < free:
                scores[h, earlier[place]] = -1
    return scores


def probe_weights(view: LayerView) -> Array:
    """[H, G, W] weights by ActQKV's activation bias; of the queries, the half with the largest counts."""
    assert view.queries is not None
    queries = view.queries.double().numpy()
    window, heads = len(queries), len(view.keys)
    group = queries.shape[1] // heads
    out = np.zeros((heads, group, window))
    for h in range(heads):
        for g in range(group):
            one = queries[:, h * group + g]
            bias = ((one - one.mean(0)) ** 2 / one.var(0)).mean(1)
            kept = np.sort(bias)[::-1][: math.ceil(window / 2)]
            out[h, g] = np.where(bias >= kept[-1], bias, 0)
            out[h, g] *= window / out[h, g].sum()
    return out


def expected_of_prompt(view: LayerView, queries: Array, start: int, horizon: int) -> Array:
    """[H, L] scores of Expected Attention from all queries of a prompt, [N, H * G, D] before rotary embedding.

    Every query is rotated to every position from `start` on; means and covariances are those of the average rotation.
    """
    keys, values = view.keys.double().numpy(), view.values().double().numpy()
    heads, rows, dim = keys.shape
    group = queries.shape[1] // heads
    frequency = 10000.0 ** (-np.arange(dim // 2) / (dim // 2))
    out = np.zeros((heads, rows))
    for h in range(heads):
        for g in range(group):
            rotated = []
            for query in queries[:, h * group + g].astype(np.float64):
                pairs = query[: dim // 2] + 1j * query[dim // 2 :]
                turned = np.mean([pairs * np.exp(1j * (start + step) * frequency) for step in range(horizon)], axis=0)
                rotated.append(np.concatenate([turned.real, turned.imag]))
            mean, spread = np.mean(rotated, axis=0), np.cov(np.array(rotated).T, bias=True)
            logits = keys[h] @ mean * view.scale + view.scale**2 / 2 * np.einsum(
                "ld,de,le->l", keys[h], spread, keys[h]
            )
            weights = np.exp(logits - logits.max())
            out[h] += weights / weights.sum() * np.linalg.norm(values[h], axis=1) / group
    return out
