"""The observation window: the last W queries of each request, copied on their way into attention.

Rows, and the row that each token of a step goes to, lie at addresses that never change. The copy is one kernel per
layer, so a CUDA graph that has captured it observes whatever tokens the step at hand names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.utils.torch_utils import async_tensor_h2d

from ..vllm_compat import cuda_graphs

FEW = 8
"""Where at most one token of a step in so many is observed, its query alone is copied, outside of graphs."""


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
        tokens: most tokens of a step, padding included.
        device: where the queries live.

    Attributes:
        free: slots that no request holds.
        rows: per layer [capacity + 1, query heads, D] in the model's dtype; the last row is scratch.
        target: int64 [tokens], row of each token of the step at hand; scratch for those that are not observed.
    """

    def __init__(self, layers: list[Any], capacity: int, tokens: int, device: torch.device) -> None:
        self.capacity = capacity
        self.free = list(range(capacity))
        self.device = device
        self.target = torch.full((tokens,), capacity, dtype=torch.int64, device=device)
        self.rows = [
            torch.zeros(capacity + 1, layer.num_heads, layer.head_size, dtype=layer.dtype, device=device)
            for layer in layers
        ]
        self._written = 0
        self._few: Tensor | None = None
        for index, layer in enumerate(layers):
            layer.impl.forward = self._observing(index, layer.impl.forward)

    @property
    def armed(self) -> bool:
        """Whether the step at hand observes any token."""
        return self._written > 0

    def _observing(self, index: int, forward: Any) -> Any:
        # An attribute of the instance: attention is called outside compiled code, so this is never traced.
        def observe(layer: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
            # This runs in steps without a full graph, and while one is captured; a replay runs the kernel alone.
            if self.armed or cuda_graphs.capturing():
                rows, target = self.rows[index], self.target[: len(query)]
                queries = query.reshape(-1, *rows.shape[1:])
                if self._few is not None and not cuda_graphs.capturing():
                    source, target = self._few
                    queries = queries[source]
                rows.index_copy_(0, target, queries.to(rows.dtype))
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

    def arm(self, plan: StepPlan) -> None:
        """Observe the planned tokens of the coming step. In stream order, so kernels of the step before are done."""
        self.disarm()
        if plan.source:
            targets = np.full(max(plan.source) + 1, self.capacity, dtype=np.int64)
            targets[plan.source] = plan.target
            async_tensor_h2d(targets, out=self.target[: len(targets)])
            self._written = len(targets)
            if len(plan.source) * FEW <= len(targets):
                pairs = np.array([plan.source, plan.target], dtype=np.int64)
                self._few = async_tensor_h2d(pairs, device=self.device)

    def disarm(self) -> None:
        """Observe nothing: graphs are replayed for dummy steps, too, with whatever the targets hold."""
        if self.armed:
            self.target[: self._written].fill_(self.capacity)
            self._written, self._few = 0, None

    def queries(self, index: int, slots: Tensor) -> Tensor:
        """float32 [W, query heads, D] of layer `index`, in the order of `slots`, int64 [W] on the store's device."""
        return self.rows[index].index_select(0, slots).float()
