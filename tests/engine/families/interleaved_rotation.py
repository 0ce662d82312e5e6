"""vLLM's rotation for CPUs goes wrong where the pairs of a head stand side by side and heads have an axis of their own.

So it is in DeepSeek's attention. vLLM's rotation in PyTorch, which it has beside, is right.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

_forward = RotaryEmbedding.forward_cpu


def forward(self: Any, positions: Tensor, query: Tensor, key: Tensor | None = None) -> Any:
    """Stands in for `RotaryEmbedding.forward_cpu`; see there for the arguments."""
    if self.is_neox_style or query.ndim < 3:
        return _forward(self, positions, query, key)
    return self.forward_native(positions, query, key)


def install() -> None:
    """Put the stand-in in the method's place, for the rest of the process."""
    RotaryEmbedding.forward_cpu = forward
