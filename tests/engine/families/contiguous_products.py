"""vLLM's matrix product for CPUs takes no transposed input, which some towers give it; of a copy it does."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm import _custom_ops

_product = _custom_ops.onednn_mm


def product(handler: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """Stands in for `onednn_mm`; see there for the arguments."""
    result: Tensor = _product(handler, x.contiguous(), bias)
    return result


def install() -> None:
    """Put the stand-in in the product's place, for the rest of the process."""
    _custom_ops.onednn_mm = product
