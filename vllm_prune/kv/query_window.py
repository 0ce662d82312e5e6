"""The observation window: the last W queries of each request, caught on their way into attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class StepPlan:
    """Which tokens of the coming step are observed, and where their queries go.

    Attributes:
        source: token of the batch, per observed token.
        target: row of the store, per observed token.
    """

    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)


class QueryStore:
    """Queries of observed tokens, per layer; rows are lent to requests and grow on demand.

    Args:
        layers: vLLM's attention layers in order.
    """

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.rows: list[Tensor | None] = [None] * len(layers)
        self.capacity = 0
        self.free: list[int] = []
        self.source: Tensor | None = None
        self.target: Tensor | None = None
        for index, layer in enumerate(layers):
            layer.impl.forward = self._listening(index, layer.impl.forward)

    def _listening(self, index: int, forward: Any) -> Any:
        # An attribute of the instance: attention is called outside compiled code, so this is never traced.
        def listen(layer: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.source is not None:
                self._take(index, query)
            return forward(layer, query, *args, **kwargs)

        return listen

    def _take(self, index: int, query: Tensor) -> None:
        store = self.rows[index]
        if store is None or len(store) < self.capacity:
            grown = query.new_zeros(self.capacity, *query.shape[1:])
            if store is not None:
                grown[: len(store)] = store
            self.rows[index] = store = grown
        assert self.source is not None
        assert self.target is not None
        store.index_copy_(0, self.target, query.index_select(0, self.source))

    def lend(self, count: int) -> list[int]:
        """Rows for a request's window."""
        missing = count - len(self.free)
        if missing > 0:
            grow = max(missing, self.capacity)
            self.free += range(self.capacity, self.capacity + grow)
            self.capacity += grow
        lent, self.free = self.free[:count], self.free[count:]
        return lent

    def give_back(self, rows: list[int]) -> None:
        """Rows of a request that has ended."""
        self.free += rows

    def arm(self, plan: StepPlan, device: torch.device) -> None:
        """Listen during the coming step."""
        if not plan.source:
            self.source = self.target = None
            return
        self.source = torch.tensor(plan.source, device=device)
        self.target = torch.tensor(plan.target, device=device)

    def queries(self, index: int, rows: list[int]) -> Tensor:
        """float32 [W, query heads, D] of layer `index`, in the order of `rows`."""
        store = self.rows[index]
        assert store is not None
        return store[rows].float()
