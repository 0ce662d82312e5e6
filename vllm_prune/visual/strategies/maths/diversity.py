"""Greedy choices of rows that are far from each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....shares import even_shares
from .vectors import STEP, highest

Gain = Callable[[Tensor, Tensor], Tensor]
"""What picking rows would bring: from their indices, int64 [n], and the largest cosine of each to a row picked before,
float32 [n], to float32 [n]. Less or equal for a larger cosine."""

ONE_BY_ONE = 32
"""Picks of a greedy choice that are made one after the other; all others are made in as many blocks."""
_CANDIDATES = 8
ONE_LAUNCH = 8192
"""Cells of a segment up to which a GPU makes all steps of `farthest_points` in one launch: a table of 256 MiB."""
# Below every gain, and still small enough for `highest`.
_PICKED = -1024.0


def farthest_points(units: Tensor, steps: int, valid: Tensor | None = None, first: Tensor | None = None) -> Tensor:
    """Greedy max-min selection (Gonzalez 1985) in S segments at once.

    Unless `first` says otherwise, the first pick is the cell whose nearest neighbour is farthest; each next one is the
    cell farthest from all picks. The distance at which a cell was picked never grows from pick to pick, so the first
    k picks of a segment are its k highest gains.

    Args:
        units: unit rows, float32 [S, n, d].
        steps: picks per segment, 1 to n.
        valid: bool [S, n], False for padding; at least one True per segment.
        first: int64 [S], the first picks.

    Returns:
        Gains, float32 [S, n]: distance (1 - cosine, 0 to 2) to the earlier picks when picked, 2 to 4 for
        the first pick, -inf where the cell was not picked.
    """
    n = units.shape[1]
    # In whole steps of 2^-20, so that equal content ties exactly; see `quantise`.
    whole = units.new_full((), STEP)
    distance = torch.baddbmm(whole, units, units.mT, alpha=-STEP).round_().clamp_min_(0)
    lonely = _fill(distance, torch.inf, valid).amin(-1).clamp_max_(2 * STEP)
    if valid is not None:
        lonely.masked_fill_(~valid, -torch.inf)
    picks = lonely.max(1).indices if first is None else first
    # -inf outlives every minimum, so neither padding nor a picked cell is ever picked again.
    table = _fill(distance, -torch.inf, valid)
    gains = gains_in_one_launch if launches_once(units, n) else gains_by_steps
    return gains(table, lonely, picks, steps, 2 * STEP) / STEP


def launches_once(units: Tensor, n: int) -> bool:
    """Whether `farthest_points` makes all steps of segments of n cells in one launch, so that many steps are cheap."""
    return units.is_cuda and n <= ONE_LAUNCH


def gains_in_one_launch(table: Tensor, lonely: Tensor, first: Tensor, steps: int, top: float) -> Tensor:
    """See `kernels.max_min_gains`; Triton is imported where a GPU needs it only."""
    from .kernels import max_min_gains

    return max_min_gains(table, lonely, first, steps, top)


def gains_by_steps(table: Tensor, lonely: Tensor, first: Tensor, steps: int, top: float) -> Tensor:
    """What `kernels.max_min_gains` computes, in three calls a step."""
    segments, n = lonely.shape
    gains = lonely.new_empty(steps, segments)
    picks = torch.empty((steps, segments), dtype=torch.int64, device=lonely.device)
    gains[0], picks[0] = lonely.amax(1) + top, first
    rows = table.view(segments * n, n)
    offsets = torch.arange(segments, device=lonely.device) * n
    reach = rows.index_select(0, picks[0] + offsets)
    row = torch.empty_like(reach)
    for step in range(1, steps):
        torch.max(reach, 1, out=(gains[step], picks[step]))
        torch.index_select(rows, 0, picks[step] + offsets, out=row)
        torch.minimum(reach, row, out=reach)
    unpicked = lonely.new_full((segments, n), -torch.inf)
    # An exhausted segment repeats cell 0 with gain -inf; the maximum keeps the real one.
    return unpicked.scatter_reduce_(1, picks.T, gains.T, "amax")


def _fill(distance: Tensor, value: float, valid: Tensor | None) -> Tensor:
    distance.diagonal(dim1=1, dim2=2).fill_(value)
    return distance if valid is None else distance.masked_fill_(~valid[:, None, :], value)


def diverse_order(
    units: Tensor, count: int, gain: Gain, first: Tensor | None = None, blocks: int | None = None
) -> Tensor:
    """Greedy choice of `count` rows by a gain that falls with the cosine to what was picked before (max-min, MMR).

    The first `blocks` rows are picked one after the other, which is the exact greedy choice. The others come in that
    many blocks: of eight times as many candidates as a block has, a candidate gives way where one that ranks before it
    is too similar, and the best are taken. So the number of steps one after the other does not grow with `count`.

    Args:
        units: unit rows, float32 [M, d].
        count: 1 to M.
        gain: see `Gain`; at the first pick every cosine is -1.
        first: int64 [1], the first pick; by default that of the largest gain.
        blocks: at least 1, `ONE_BY_ONE` by default.

    Returns:
        int64 [count], in the order of picking, ties to the lower index.
    """
    every = torch.arange(len(units), device=units.device)
    nearest = units.new_full((len(units),), -1.0)
    picks: list[Tensor] = []
    for size in _sizes(count, ONE_BY_ONE if blocks is None else blocks):
        if picks:
            nearest = torch.maximum(nearest, (units @ units[picks[-1]].T).amax(1))
            values = gain(every, nearest).index_fill(0, torch.cat(picks), _PICKED)
            picks.append(_block(units, nearest, values, size, gain))
        else:
            picks.append(highest(gain(every, nearest), 1) if first is None else first)
    return torch.cat(picks)


def _sizes(count: int, blocks: int) -> list[int]:
    single = min(count, blocks)
    return [1] * single + [size for size in even_shares(count - single, blocks, count) if size]


def _block(units: Tensor, nearest: Tensor, values: Tensor, size: int, gain: Gain) -> Tensor:
    """The next `size` picks, by the gain that each has behind those that rank before it."""
    if size == 1:
        return highest(values, 1)
    candidates = highest(values, min(_CANDIDATES * size, len(values)))
    similar = (units[candidates] @ units[candidates].T).tril(-1)
    before = torch.ones_like(similar, dtype=torch.bool).tril(-1)
    similar = torch.maximum(nearest[candidates], similar.masked_fill(~before, -1.0).amax(1))
    fresh = torch.where(values[candidates] > _PICKED, gain(candidates, similar), _PICKED)
    return candidates[highest(fresh, size)]


def max_sum_order(units: Tensor, count: int) -> Tensor:
    """Greedy choice of `count` rows, each with the largest sum of distances (1 - cosine) to those picked before.

    The first is the farthest from the mean. Later ones come in blocks of an eighth of what has been picked, within
    which they do not yet count for each other.

    Args:
        units: unit rows, float32 [M, d].
        count: 1 to M.

    Returns:
        int64 [count], in the order of picking, ties to the lower index.
    """
    chosen = highest(-(units @ units.mean(0)), 1)
    picks, left = [chosen], count - 1
    total = units[chosen].sum(0)
    while left:
        size = min(left, max(1, (count - left) // 8))
        # A mean of distances ranks as their sum and stays in the range of `highest`.
        values = 1 - units @ (total / (count - left))
        chosen = highest(values.index_fill(0, torch.cat(picks), _PICKED), size)
        picks.append(chosen)
        total = total + units[chosen].sum(0)
        left -= size
    return torch.cat(picks)
