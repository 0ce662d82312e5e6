"""Kernels that a GPU would run for some code, and the bytes that they move, counted without a GPU or any data.

Operators are watched on their way through PyTorch's dispatcher while the code runs on the meta device: shapes are real,
values do not exist. Each operator that computes is one kernel that reads its inputs once and writes its outputs once.
Views and allocations are none. A gather reads what it returns. Sorts, scans and sums over several passes move more than
that, so bytes are a lower bound of what PyTorch's own kernels move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GATHERS = ("index_select", "index", "gather", "embedding")
SCATTERS = ("index_put_", "index_copy_", "index_fill_", "scatter_", "scatter_reduce_", "masked_fill_")
"""Write in place, and leave what they do not write."""
NO_KERNEL = ("empty", "new_empty", "empty_like", "empty_strided", "lift_fresh", "detach", "detach_")


@dataclass
class Traffic:
    """A sum.

    Attributes:
        kernels: launched one after the other.
        bytes: read and written.
        steps: inside kernels, each of which waits for what the one before has read.
    """

    kernels: int = 0
    bytes: int = 0
    steps: int = 0

    def add(self, moved: int, kernels: int = 1, steps: int = 0) -> None:
        """Count kernels that move so many bytes in all."""
        self.kernels += kernels
        self.bytes += moved
        self.steps += steps

    def times(self, count: int) -> Traffic:
        """The same so many times."""
        return Traffic(count * self.kernels, count * self.bytes, count * self.steps)


class Counting(TorchDispatchMode):
    """Adds up what runs inside; use as a context manager.

    Attributes:
        traffic: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        if name not in NO_KERNEL and not _is_view(func, args, result):
            self.traffic.add(_moved(name, args, kwargs, result))
        return result


def _is_view(func: Any, args: Any, result: Any) -> bool:
    """Whether an operator has only looked at a tensor in another way; `to` and `reshape` do not always."""
    returns = func._schema.returns
    if not returns or any(one.alias_info is None or one.alias_info.is_write for one in returns):
        return False
    storages = {one.untyped_storage()._cdata for one in tree_leaves(args) if isinstance(one, Tensor)}
    return all(one.untyped_storage()._cdata in storages for one in tree_leaves(result))


def _moved(name: str, args: Any, kwargs: Any, result: Any) -> int:
    written = _bytes(result)
    if name in GATHERS:
        return 2 * written + _bytes(args[1:])
    if name in SCATTERS:
        return 2 * _bytes(args[1:])
    outputs = {id(one) for one in tree_leaves(kwargs.get("out")) if isinstance(one, Tensor)}
    inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and id(one) not in outputs]
    return written + sum(map(_size, inputs))


def _bytes(tree: Any) -> int:
    return sum(_size(one) for one in tree_leaves(tree) if isinstance(one, Tensor))


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor's distinct elements: what an expanded one repeats is read once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count * tensor.element_size()


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")
