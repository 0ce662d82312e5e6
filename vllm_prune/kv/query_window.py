"""The observation window: the last W queries of each request, copied on their way into attention."""

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
        target: slot of the store, per observed token.
    """

    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)


class QueryStore:
    """Queries of observed tokens, per layer, in slots that requests hold while they run.

    Args:
        layers: vLLM's attention layers in order.
        capacity: number of slots; all memory is allocated here.
        device: where the queries live.

    Attributes:
        free: slots that no request holds.
        source: token of the batch, per observed token of the coming step; None for a step that observes nothing.
        target: slot, per observed token of the coming step.
    """

    def __init__(self, layers: list[Any], capacity: int, device: torch.device) -> None:
        self.capacity = capacity
        self.free = list(range(capacity))
        self.source: Tensor | None = None
        self.target: Tensor | None = None
        self.rows = [
            torch.zeros(capacity, layer.num_heads, layer.head_size, dtype=layer.dtype, device=device)
            for layer in layers
        ]
        for index, layer in enumerate(layers):
            layer.impl.forward = self._observing(index, layer.impl.forward)

    def _observing(self, index: int, forward: Any) -> Any:
        # An attribute of the instance: attention is called outside compiled code, so this is never traced.
        def observe(layer: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.source is not None:
                assert self.target is not None
                rows = self.rows[index]
                rows.index_copy_(0, self.target, query.index_select(0, self.source).to(rows.dtype))
            return forward(layer, query, *args, **kwargs)

        return observe

    def acquire(self, count: int) -> list[int]:
        """Slots for a request's window.

        Raises:
            RuntimeError: more than are free. The scheduler lets no request run whose window does not fit.
        """
        if count > len(self.free):
            raise RuntimeError(
                f"a window of {count} queries does not fit: {len(self.free)} of {self.capacity} are free"
            )
        acquired, self.free = self.free[:count], self.free[count:]
        return acquired

    def release(self, slots: list[int]) -> None:
        """Take back the slots of a request that has ended."""
        self.free += slots

    def arm(self, plan: StepPlan, device: torch.device) -> None:
        """Observe the planned tokens of the coming step."""
        if not plan.source:
            self.source = self.target = None
            return
        self.source = torch.tensor(plan.source, device=device)
        self.target = torch.tensor(plan.target, device=device)

    def queries(self, index: int, slots: list[int]) -> Tensor:
        """float32 [W, query heads, D] of layer `index`, in the order of `slots`."""
        return self.rows[index][slots].float()
