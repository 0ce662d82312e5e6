"""Maths that strategies share: exact integer shares, unit vectors, matching, farthest points, pixel digests.

Everything accumulates in float32 whatever the input dtype, and touches no global random state.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .base import Cells, to_device

SKETCH = 128
"""Width of the Johnson-Lindenstrauss sketch; wider tokens are projected down to it."""

_STEP = 2.0**20
_DIGEST_SEED = 0x5EED
_SKETCH_SEED = 0x0CE115
# Values (or rows, in a sketch) widened at once: such copies stay in the processor's cache, and being small
# they come from the heap without page faults.
_CHUNK = 1 << 15
_CHUNK_ROWS = 256


def evenly_spaced(total: int, count: int, device: torch.device | None = None) -> Tensor:
    """`count` indices spread over `total`: floor((i + 0.5) * total / count), int64 [count], ascending."""
    return ((2 * torch.arange(count, device=device) + 1) * total) // (2 * max(count, 1))


def quantise(values: Tensor) -> Tensor:
    """Round to multiples of 2^-20, so that equal content ties exactly despite rounding noise in a product."""
    return (values * _STEP).round() / _STEP


def unit_rows(rows: Tensor) -> Tensor:
    """Rows at unit length in float32, [..., D]; zero rows stay zero."""
    return torch.nn.functional.normalize(rows.float(), dim=-1)


def cosine(left: Tensor, right: Tensor) -> Tensor:
    """Cosine of paired rows, [..., D] and [..., D] to float32 [...]."""
    return (unit_rows(left) * unit_rows(right)).sum(-1)


def sketch(rows: Tensor) -> Tensor:
    """Unit rows of width at most `SKETCH` whose cosines approximate those of `rows` (Johnson-Lindenstrauss).

    A fixed matrix of random signs does it, so every process gets the same sketch; equal rows get
    equal sketches.

    Args:
        rows: [M, D], any float dtype.

    Returns:
        float32 [M, min(D, SKETCH)].
    """
    width = rows.shape[-1]
    if width <= SKETCH:
        return unit_rows(rows)
    signs = _signs(width, rows.device)
    return unit_rows(torch.cat([part.float() @ signs for part in rows.split(_CHUNK_ROWS)]))


@lru_cache(maxsize=16)
def _signs(width: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(_SKETCH_SEED)
    return to_device(torch.randint(0, 2, (width, SKETCH), generator=generator).float() * 2 - 1, device)


def match(frame: Tensor, reference: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Find each cell's most similar reference cell within `radius` rows and columns (block matching).

    Ties prefer the nearer row, then the upper one, then the left column.

    Args:
        frame: unit rows, float32 [R, C, D].
        reference: unit rows, float32 [R, C, D].
        radius: 0 compares a cell with the same place only.

    Returns:
        Best cosine, float32 [R, C], and the flat index of the reference cell, int64 [R, C].
    """
    rows, cols, _ = frame.shape
    best = frame.new_full((rows, cols), -torch.inf)
    index = torch.zeros((rows, cols), dtype=torch.int64, device=frame.device)
    places = torch.arange(cols, device=frame.device)
    far = (places[:, None] - places[None, :]).abs() > radius
    for shift in sorted(range(-radius, radius + 1), key=abs):
        top, bottom = max(0, -shift), rows - max(0, shift)
        if bottom <= top:
            continue
        # A product of whole rows wastes the far columns and still beats gathering neighbours: it is one GEMM.
        similar = torch.bmm(frame[top:bottom], reference[top + shift : bottom + shift].mT)
        value, col = quantise(similar).masked_fill_(far, -torch.inf).max(dim=-1)
        row = torch.arange(top + shift, bottom + shift, device=frame.device)[:, None]
        better = value > best[top:bottom]
        best[top:bottom] = torch.where(better, value, best[top:bottom])
        index[top:bottom] = torch.where(better, row * cols + col, index[top:bottom])
    return best, index


def farthest_points(units: Tensor, steps: int, valid: Tensor | None = None) -> Tensor:
    """Greedy max-min selection (Gonzalez 1985) in S segments at once.

    The first pick is the cell whose nearest neighbour is farthest; each next one is the cell farthest
    from all picks. The distance at which a cell was picked never grows from pick to pick, so the first
    k picks of a segment are its k highest gains.

    Args:
        units: unit rows, float32 [S, n, d].
        steps: picks per segment, 1 to n.
        valid: bool [S, n], False for padding; at least one True per segment.

    Returns:
        Gains, float32 [S, n]: distance (1 - cosine, 0 to 2) to the earlier picks when picked, 2 to 4 for
        the first pick, -inf where the cell was not picked.
    """
    segments, n, _ = units.shape
    # In whole steps of 2^-20, so that equal content ties exactly; see `quantise`.
    whole = units.new_full((), _STEP)
    distance = torch.baddbmm(whole, units, units.mT, alpha=-_STEP).round_().clamp_min_(0)
    lonely = _fill(distance, torch.inf, valid).amin(-1).clamp_max_(2 * _STEP)
    if valid is not None:
        lonely.masked_fill_(~valid, -torch.inf)
    gains = units.new_empty(steps, segments)
    picks = torch.empty((steps, segments), dtype=torch.int64, device=units.device)
    torch.max(lonely, 1, out=(gains[0], picks[0]))
    gains[0] += 2 * _STEP
    # -inf outlives every minimum, so neither padding nor a picked cell is ever picked again.
    table = _fill(distance, -torch.inf, valid).view(segments * n, n)
    offsets = torch.arange(segments, device=units.device) * n
    reach = table.index_select(0, picks[0] + offsets)
    row = torch.empty_like(reach)
    for step in range(1, steps):
        torch.max(reach, 1, out=(gains[step], picks[step]))
        torch.index_select(table, 0, picks[step] + offsets, out=row)
        torch.minimum(reach, row, out=reach)
    unpicked = units.new_full((segments, n), -torch.inf)
    # An exhausted segment repeats cell 0 with gain -inf; the maximum keeps the real one.
    return unpicked.scatter_reduce_(1, picks.T, gains.T / _STEP, "amax")


def _fill(distance: Tensor, value: float, valid: Tensor | None) -> Tensor:
    distance.diagonal(dim1=1, dim2=2).fill_(value)
    return distance if valid is None else distance.masked_fill_(~valid[:, None, :], value)


def cells_of(patches: Tensor, per_cell: int = 1, channels: int = 1) -> Cells:
    """Digest and texture of each cell's pixels.

    The digest is a random projection of the raw bits modulo 2^64 with fixed odd weights: equal rows
    give equal digests in every process, different ones collide with a probability of at most 2^-32.

    Args:
        patches: [M, B], one row per cell, uint8 or any float dtype.
        per_cell: patches in a row, one after the other.
        channels: colour channels in each patch, one after the other. With the default of one, a flat
            coloured cell has texture, because its channels differ from each other.

    Returns:
        `Cells` with M entries, on the CPU; the texture is the root of the variance inside a channel,
        averaged over channels.

    Raises:
        ValueError: B is no multiple of `per_cell * channels`.
    """
    if patches.shape[1] % (per_cell * channels):
        raise ValueError(f"{patches.shape[1]} values are not {per_cell} patches of {channels} channels")
    rows = patches.detach().cpu().contiguous()
    bits = rows.view(_bit_type(rows.dtype))
    weights = _digest_weights(bits.shape[1])
    # Integer products wrap, which is what modulo 2^64 asks for.
    chunk = max(1, _CHUNK // rows.shape[1])
    digest = [part.long() @ weights for part in bits.split(chunk)]
    texture = [_texture(part.float(), per_cell, channels) for part in rows.split(chunk)]
    return Cells(torch.cat(digest), torch.cat(texture))


def _bit_type(dtype: torch.dtype) -> torch.dtype:
    return {1: dtype, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


@lru_cache(maxsize=16)
def _digest_weights(width: int) -> Tensor:
    generator = torch.Generator().manual_seed(_DIGEST_SEED)
    # An even weight would lose the top bit of its value.
    return torch.randint(-(2**63), 2**63 - 1, (width,), generator=generator) | 1


def _texture(rows: Tensor, per_cell: int, channels: int) -> Tensor:
    runs = rows.view(len(rows), per_cell, channels, rows.shape[1] // (per_cell * channels))
    means = runs.mean(-1)
    # Variance of a channel = mean variance of its runs + variance of their means; this order reads pixels once.
    inside = (runs - means[..., None]).square_().mean(-1).mean(1)
    between = (means - means.mean(1, keepdim=True)).square().mean(1)
    return (inside + between).mean(-1).sqrt()
