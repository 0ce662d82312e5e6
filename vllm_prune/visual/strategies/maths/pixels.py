"""Digests and textures of pixels."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..base import Cells

_DIGEST_SEED = 0x5EED
# Values widened at once: such copies stay in the processor's cache, and being small they come from the heap without
# page faults.
_CHUNK = 1 << 15


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


def first_of_equals(digests: Tensor) -> Tensor:
    """Whether no equal digest stands before, bool [n] from int64 [n]."""
    values, order = digests.sort(stable=True)
    again = torch.zeros_like(order, dtype=torch.bool)
    again[order[1:]] = values[1:] == values[:-1]
    return ~again


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
