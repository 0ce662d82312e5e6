"""Pooling of scores along the cached rows."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn import functional


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError("give an odd number, so that a row has as many neighbours on both sides")
    return kernel


Kernel = Annotated[int, Field(ge=1, le=63), AfterValidator(_odd)]


def average_pool(scores: Tensor, kernel: int) -> Tensor:
    """Mean over `kernel` neighbours of [H, n] scores; outside counts as zero."""
    return functional.avg_pool1d(scores, kernel, stride=1, padding=kernel // 2)


def max_pool(scores: Tensor, kernel: int) -> Tensor:
    """Maximum over `kernel` neighbours of [H, n] scores."""
    return functional.max_pool1d(scores, kernel, stride=1, padding=kernel // 2)
