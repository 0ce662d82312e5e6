"""A bias per key for one block of the vision tower (STTS, arXiv 2603.18004, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad


class KeyBiasAttention(nn.Module):
    """Adds a bias per key to what any varlen kernel computes, without a mask.

    Heads are widened by `EXTRA`: q' = [q, 1, 1, 0 ...] and k' = [k, a, b, 0 ...] with a + b = bias / scale, so that
    scale q'.k' = scale q.k + bias. Two terms, because one would be rounded to the kernel's dtype.

    Args:
        plain: the block's own attention.
        wide: the same attention for heads that are `EXTRA` wider, at the plain one's scale.
        bias: float32 [patches].
    """

    EXTRA = 8

    def __init__(self, plain: Any, wide: Any, bias: Tensor) -> None:
        super().__init__()
        self._plain, self._wide, self._bias = plain, wide, bias

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **lengths: Any) -> Tensor:
        """[1, patches, heads, size] each; see vLLM's `MMEncoderAttention`."""
        size = query.shape[-1]
        query, key, value = (pad(rows, (0, self.EXTRA)) for rows in (query, key, value))
        bias = (self._bias / self._plain.scale).view(1, -1, 1)
        query[..., size : size + 2] = 1
        key[..., size] = bias.to(key.dtype)
        key[..., size + 1] = (bias - bias.to(key.dtype).float()).to(key.dtype)
        return self._wide(query=query, key=key, value=value, **lengths)[..., :size]


@contextmanager
def biased_attention(block_attention: Any, wide: Any, bias: Tensor) -> Iterator[None]:
    """A block's attention with a bias per key; outside of this context the block is vLLM's own."""
    plain = block_attention.attn
    block_attention.attn = KeyBiasAttention(plain, wide, bias)
    try:
        yield
    finally:
        block_attention.attn = plain
