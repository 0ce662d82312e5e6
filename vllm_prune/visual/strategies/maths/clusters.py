"""Groups of alike rows: sums per group, medoids, k-means on and off the sphere, and density peaks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import to_device
from .vectors import SKETCH, STEP, quantise, unit_rows

# Similarities that are held at once. On a CPU they stay in its cache; elsewhere fewer launches count for more.
_PART, _LARGE_PART = 1 << 19, 1 << 22


def sum_by(rows: Tensor, owner: Tensor, count: int) -> Tensor:
    """Sum of the rows of each owner, float32 [count, E] from [n, E] and int64 [n]; the same at every run."""
    total = torch.zeros(count, rows.shape[1], device=rows.device)
    if rows.is_cuda:
        # This one sorts; `index_add_` adds in the order in which threads happen to arrive.
        return total.index_put_((owner,), rows.float(), accumulate=True)
    return total.index_add_(0, owner, rows.float())


def count_by(owner: Tensor, count: int) -> Tensor:
    """Number of rows of each owner, int64 [count]; unlike `torch.bincount` it never waits for the device."""
    return torch.zeros(count, dtype=torch.int64, device=owner.device).scatter_add_(0, owner, torch.ones_like(owner))


def mean_by(rows: Tensor, owner: Tensor, count: int) -> Tensor:
    """Mean of the rows of each owner, float32 [count, E]; zero for an owner of none."""
    return sum_by(rows, owner, count) / count_by(owner, count).clamp_min(1)[:, None]


def nearest(rows: Tensor, centers: Tensor) -> Tensor:
    """Nearest center (Euclidean) of each row, int64 [n] from [n, d] and [k, d]; ties to the lower index."""
    # Whole steps, see `quantise`: a power of two, by which every product scales exactly.
    bias = centers.square().sum(1) / 2 * STEP
    step = max(1, (_PART if rows.is_cpu else _LARGE_PART) // len(centers))
    parts = (rows * STEP).split(step)
    return torch.cat([(part @ centers.T).sub_(bias).round_().argmax(1) for part in parts])


def medoids(units: Tensor, centers: Tensor, owner: Tensor) -> Tensor:
    """The member of each group that has the largest product with the group's center, int64 [k]; no group is empty."""
    count, n = len(centers), len(units)
    values = quantise((units * centers[owner]).sum(1))
    top = values.new_full((count,), -torch.inf).scatter_reduce_(0, owner, values, "amax")
    places = torch.arange(n, device=units.device).masked_fill(values < top[owner], n)
    return torch.full((count,), n, device=units.device).scatter_reduce_(0, owner, places, "amin")


def cluster(units: Tensor, first: Tensor, steps: int, medoid_centers: bool = False) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from given first centers: k-means, or k-medoids.

    Every group keeps its medoid as a member, so that none runs empty and exactly k rows are medoids.

    Args:
        units: unit rows, float32 [n, d].
        first: int64 [k], distinct rows.
        steps: how often centers are computed anew.
        medoid_centers: whether a group's center is its medoid, not its mean. Between unit rows the medoid under squared
            distances is the member with the largest product with the mean.

    Returns:
        Medoids, int64 [k], and the group of each row, int64 [n].
    """
    kept, centers = first, units[first]
    order = torch.arange(len(first), device=units.device)
    owner = kept
    for _ in range(steps + 1):
        owner = nearest(units, centers).index_copy_(0, kept, order)
        means = mean_by(units, owner, len(first))
        kept = medoids(units, means, owner)
        centers = units[kept] if medoid_centers else means
    return kept, owner


def drawn_centers(units: Tensor, count: int, seed: int) -> Tensor:
    """First centers by k-means++, int64 [k]: rows are drawn with their squared distance to the nearest one before.

    Of many centers some are drawn at once, by the same distances, so that there are at most 2 * `SKETCH` rounds
    (k-means||, Bahmani et al. 2012, arXiv 1203.6402, section 3.3, with a fixed number in each round). Weights are whole
    numbers, at least one, so that the same seed draws the same rows at every run; where fewer than k rows differ, and
    by chance in a round, some are drawn again.

    Args:
        units: unit rows, float32 [n, d].
        count: k.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = to_device(torch.rand(count, generator=generator, dtype=torch.float64), units.device)
    distance, drawn = torch.full((len(units),), 4.0, device=units.device), list[Tensor]()
    # The first alone: no distances tell the rows apart yet.
    later = draws[1:].split(max(1, count // SKETCH)) if count > 1 else ()
    for some in (draws[:1], *later):
        sums = ((distance * STEP).round().long() + 1).cumsum(0)
        places = torch.searchsorted(sums, (some * sums[-1:]).long(), right=True)
        drawn.append(places)
        squares = (2 - 2 * (units @ units[places].T).amax(1)).clamp_min(0)
        distance = distance.minimum(squares)
    return torch.cat(drawn)


def spherical_groups(units: Tensor, first: Tensor, steps: int) -> Tensor:
    """Lloyd's algorithm by cosine: the group of each row, int64 [n]. A group without rows keeps its center.

    Args:
        units: unit rows, float32 [n, d].
        first: int64 [k], rows that are first centers.
        steps: how often rows are given to centers, at least once.
    """
    centers, owner = units[first], first
    for step in range(steps):
        before, owner = owner, nearest(units, unit_rows(centers))
        # Steps behind a fixed point change nothing; elsewhere than on a CPU asking would wait for the device.
        if step and units.is_cpu and torch.equal(owner, before):
            break
        held = count_by(owner, len(first))[:, None] > 0
        centers = torch.where(held, mean_by(units, owner, len(first)), centers)
    return owner


def heaviest(owner: Tensor, count: int, parts: int, *weights: Tensor) -> Tensor:
    """The rows of each owner that weigh most, int64 [count, parts], heaviest first, in turn again where it has fewer.

    Args:
        owner: int64 [n]; `count` for rows of none. Every other owner has a row.
        count: owners.
        parts: rows of each.
        weights: float [n] each; the next decides where one is equal, and the index in the end.
    """
    order = torch.arange(len(owner), device=owner.device)
    for values in reversed(weights):
        order = order[values[order].argsort(descending=True, stable=True)]
    order = order[owner[order].argsort(stable=True)]
    sizes = count_by(owner, count + 1)[:count]
    turn = torch.arange(parts, device=owner.device) % sizes.clamp_max(parts)[:, None]
    return order[(sizes.cumsum(0) - sizes)[:, None] + turn]


def density_peaks(rows: Tensor, count: int, neighbours: int) -> Tensor:
    """Centers of dense groups (DPC-kNN): rows that are dense and far from denser ones, int64 [count].

    Density is exp(-mean squared distance to the `neighbours` nearest rows, itself among them), and a row's score
    density times distance to the nearest denser row. No noise breaks ties: of equally dense rows the lower index counts
    as denser.

    Args:
        rows: float32 [n, d], scaled so that squared distances are of the order of one.
        count: at most n.
        neighbours: at least 1; as many as there are rows where that is more.
    """
    lengths = rows.square().sum(1)
    distance = quantise(lengths[:, None] + lengths[None] - 2 * (rows @ rows.T)).clamp_min_(0).fill_diagonal_(0)
    density = (-distance.topk(min(neighbours, len(rows)), largest=False).values.mean(1)).exp()
    order = torch.arange(len(rows), device=rows.device)
    denser = (density[None] > density[:, None]) | ((density[None] == density[:, None]) & (order[None] < order[:, None]))
    reach = torch.where(denser, distance, torch.inf).amin(1)
    reach = torch.where(reach.isinf(), distance.amax(), reach)
    return (quantise(density * reach.sqrt()).argsort(descending=True, stable=True))[:count]


def absorb(rows: Tensor, kept: Tensor, owner: Tensor, least: float) -> Tensor:
    """Mix kept rows with the mean of those that they absorb, float32 [K, E].

    A row that absorbs n others weighs max(least, 1 / (n + 1)) itself, and 1 where it absorbs none (FastVID, HoliTom).

    Args:
        rows: [M, E].
        kept: int64 [K].
        owner: int64 [M], place in `kept` that absorbs a row; K for rows that nobody absorbs, kept ones among them.
        least: in [0, 1].
    """
    count = len(kept)
    weight = owner_weights(count_by(owner, count + 1)[:count], least)[:, None]
    return weight * rows[kept].float() + (1 - weight) * mean_by(rows, owner, count + 1)[:count]


def owner_weights(absorbed: Tensor, least: float) -> Tensor:
    """What kept rows weigh themselves, float32 [K], by how many others each absorbs, int64 [K]; see `absorb`."""
    return (1 / (absorbed + 1)).clamp_min(least).masked_fill(absorbed == 0, 1.0)
