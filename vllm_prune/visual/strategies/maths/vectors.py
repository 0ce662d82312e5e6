"""Unit vectors, their cosines and a sketch of them, even spacing and ties."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..base import to_device

SKETCH = 128
"""Width of the Johnson-Lindenstrauss sketch; wider tokens are projected down to it."""

STEP = 2.0**20
"""Values are compared in whole steps of 1/STEP, see `quantise`."""

_SKETCH_SEED = 0x0CE115
_LARGE = 1024
# Rows widened at once. On a CPU such copies stay in its cache; elsewhere fewer launches count for more.
_CHUNK_ROWS, _LARGE_CHUNK_ROWS = 256, 8192


def evenly_spaced(total: int, count: int, device: torch.device | None = None) -> Tensor:
    """`count` indices spread over `total`: floor((i + 0.5) * total / count), int64 [count], ascending."""
    return ((2 * torch.arange(count, device=device) + 1) * total) // (2 * max(count, 1))


def quantise(values: Tensor) -> Tensor:
    """Round to multiples of 2^-20, so that equal content ties exactly despite rounding noise in a product."""
    return (values * STEP).round() / STEP


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
    chunk = _CHUNK_ROWS if rows.is_cpu else _LARGE_CHUNK_ROWS
    return unit_rows(torch.cat([part.float() @ signs for part in rows.split(chunk)]))


def compared(rows: Tensor, per_frame: int) -> Tensor:
    """What cells of one frame are compared by, float32 [M, d]: the rows themselves, or short ones for large frames.

    All pairs of a frame of up to 1,024 cells take less than a thousandth of what the language model takes for them; of
    more cells the `sketch` is compared, with the lengths that the rows have.
    """
    if per_frame <= _LARGE:
        return rows.float()
    return sketch(rows) * rows.float().norm(dim=1, keepdim=True)


@lru_cache(maxsize=16)
def _signs(width: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(_SKETCH_SEED)
    return to_device(torch.randint(0, 2, (width, SKETCH), generator=generator).float() * 2 - 1, device)


def highest(values: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest of [n] values, int64, highest first; values within one step of `STEP` tie.

    Ties go to the lower index on every device, which `torch.topk` does not promise.

    Args:
        values: float [n], magnitudes below 2^20.
        count: at most n.
    """
    steps = (values.double() * STEP).round().long()
    order = torch.arange(len(values) - 1, -1, -1, device=values.device)
    return (steps * len(values) + order).topk(count).indices


def spread_to_one(values: Tensor) -> Tensor:
    """Move and scale [n] values to 0 to 1 (min-max), float32; equal values become 0."""
    values = values.float()
    low = values.min()
    return (values - low) / (values.max() - low).clamp_min(1e-12)
