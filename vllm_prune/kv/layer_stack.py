"""Layers whose rows are chosen together: on a CPU short caches of many layers are many small steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .cache import VALUES, Blocks, CacheRows
from .strategies.base import PART, KvStrategy

STACKED = 1 << 21
"""Most elements of the keys that come together, 8 MiB of them in float32, which a processor's caches hold."""


@dataclass(frozen=True)
class LayerStack:
    """One layer, or several of one shape whose heads come one after the other.

    Attributes:
        indices: of the layers.
        rows: access to the cache of each.
    """

    indices: tuple[int, ...]
    rows: tuple[CacheRows, ...]

    @classmethod
    def divide(
        cls,
        indices: Sequence[int],
        layers: Sequence[Any],
        rows: Sequence[CacheRows],
        count: int,
        window: int,
        strategy: KvStrategy,
    ) -> list[LayerStack]:
        """Stacks of layers in order.

        Args:
            indices: layers to divide.
            layers: vLLM's attention layers by index.
            rows: access to their caches by index.
            count: L, rows of each.
            window: W, queries that a strategy may look at.
            strategy: chooses in one layer at a time, unless it looks at each head by itself.
        """
        if not strategy.by_head() or layers[indices[0]].kv_cache.device.type != "cpu":
            return [cls((index,), (rows[index],)) for index in indices]
        parts: list[LayerStack] = []
        for (heads, queries, size, *_), group in groupby(indices, lambda index: _shape(layers[index])):
            # All attention weights of a stack come at once, as those of a layer do.
            fitting = min(STACKED // (heads * size * count), PART // (queries * window * count))
            members, most = list(group), max(1, fitting)
            for start in range(0, len(members), most):
                chosen = tuple(members[start : start + most])
                parts.append(cls(chosen, tuple(rows[index] for index in chosen)))
        return parts

    def read(self, source: Blocks, half: int) -> Tensor:
        """Keys or values of a run of L rows, [n * H, L, D], a copy; see `CacheRows.read`."""
        first = self.rows[0]
        if len(self.rows) == 1:
            return first.read(source, half)
        _, heads, _, width = first.cache.shape
        slots = len(source.ids) * source.size
        memory = first.cache.new_empty(len(self.rows) * heads, slots, width // 2)
        for rows, part in zip(self.rows, memory.split(heads), strict=True):
            rows.read_into(source, half, part)
        return memory[:, : len(source.slots)]

    def split(self, *tensors: Tensor) -> Iterator[tuple[int, Any]]:
        """Each layer's index and its heads of every tensor, [n * H, ...]."""
        parts = (tensor.chunk(len(self.indices)) for tensor in tensors)
        return zip(self.indices, zip(*parts, strict=True), strict=True)


class StackedValues:
    """Values of a stack's rows, which are read when a strategy looks at them.

    Args:
        stack: the layers.
        source: where the L rows lie.
    """

    def __init__(self, stack: LayerStack, source: Blocks) -> None:
        self._stack, self._source = stack, source
        self._rows: Tensor | None = None

    def __call__(self) -> Tensor:
        """float32 [n * H, L, D]."""
        if self._rows is None:
            self._rows = self._stack.read(self._source, VALUES)
        return self._rows.float()

    def by_layer(self) -> Sequence[Tensor | None]:
        """[H, L, D] of each layer in the cache's dtype; None where nothing has looked at them."""
        layers = len(self._stack.indices)
        return [None] * layers if self._rows is None else self._rows.chunk(layers)


def _shape(layer: Any) -> tuple[int, int, int, float, torch.dtype]:
    return layer.num_kv_heads, layer.num_heads, layer.head_size, float(layer.impl.scale), layer.kv_cache.dtype


def joined_fields(fields: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fields of a `LayerView` of several layers, from those of each; only of strategies that look at heads apart."""
    first = fields[0]
    if len(fields) == 1:
        return dict(first)
    several: dict[str, Any] = {}
    for name, value in first.items():
        if name == "queries":
            several[name] = torch.cat([one[name] for one in fields], dim=1)
        elif name in ("saliency", "normed_saliency"):
            several[name] = torch.cat([one[name] for one in fields])
        elif name != "logits" or value is not None:
            raise ValueError(f"{name} of several layers cannot be given at once")
    return several
