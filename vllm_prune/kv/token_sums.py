"""Which tokens of a step are added to which sums.

Both lie at addresses that never change, so kernels that a CUDA graph has captured add whatever tokens the step at hand
names.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d


@dataclass
class SumPlan:
    """Which tokens of the coming step are added, and to which sums.

    Attributes:
        parts: number of a sum, and the first and last token of the batch (exclusive) that are added to it.
    """

    parts: list[tuple[int, int, int]] = field(default_factory=list)


class TokenSums:
    """Base of what sums up something of chosen tokens.

    Args:
        tokens: most tokens of a step, padding included.
        nowhere: number in place of a sum's, for tokens that are not added.
        device: where the sums live.

    Attributes:
        plan: of the step at hand.
        target: int64 [tokens], number of the sum that each token of the step at hand is added to, or `nowhere`.
    """

    def __init__(self, tokens: int, nowhere: int, device: torch.device) -> None:
        self.nowhere, self.device = nowhere, device
        self.target = torch.full((tokens,), nowhere, dtype=torch.int64, device=device)
        self.plan, self._written = SumPlan(), 0

    @property
    def armed(self) -> bool:
        """Whether the step at hand adds any token."""
        return self._written > 0

    def arm(self, plan: SumPlan) -> None:
        """Add the planned tokens of the coming step. In stream order, so kernels of the step before are done."""
        self.disarm()
        if plan.parts:
            targets = np.full(max(end for _, _, end in plan.parts), self.nowhere, dtype=np.int64)
            for number, start, end in plan.parts:
                targets[start:end] = number
            async_tensor_h2d(targets, out=self.target[: len(targets)])
            self.plan, self._written = plan, len(targets)

    def disarm(self) -> None:
        """Add nothing: graphs are replayed for dummy steps, too, with whatever the targets hold."""
        if self.armed:
            self.target[: self._written].fill_(self.nowhere)
            self.plan, self._written = SumPlan(), 0
