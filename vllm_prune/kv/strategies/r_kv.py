"""R-KV: attention against redundancy, for long generations."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from ._pooling import Kernel, max_pool
from .base import KvStrategy, LayerView, NoKvOptions, Scores, summed_attention

CHUNK = 1 << 22
"""Most similarities that are held at once."""


class RKvOptions(NoKvOptions):
    """Options of `r_kv`.

    Attributes:
        balance: weight of attention; redundancy has the rest.
        pooling: kernel of the maximum pooling of attention, odd.
        similar: cosine above which one key counts as a repeat of another.
    """

    balance: Annotated[float, Field(ge=0, le=1)] = 0.1
    pooling: Kernel = 7
    similar: Annotated[float, Field(ge=-1, le=1)] = 0.5


class RKv(KvStrategy):
    """Rows that the window attends to and whose keys are not similar to those of other rows."""

    name = "r_kv"
    paper = "R-KV, arXiv 2505.24133, section 3"
    summary = "attended rows that are not repeats; for long answers"
    needs = frozenset({"queries"})
    quadratic = True
    Options = RKvOptions
    options: RKvOptions

    def score(self, view: LayerView) -> Scores:
        """Weigh attention against redundancy; both sum to one over the rows outside the window."""
        free = view.rows - view.window
        attention = summed_attention(view).amax(dim=1)[:, :free] / view.window
        attention = max_pool(attention, self.options.pooling)
        attention = attention / attention.sum(dim=1, keepdim=True).clamp(min=1e-12)
        redundancy = self._similarity(view.keys[:, :free]).softmax(dim=1)
        rows = torch.zeros_like(view.keys[..., 0])
        rows[:, :free] = self.options.balance * attention - (1 - self.options.balance) * redundancy
        return Scores(rows)

    def _similarity(self, keys: Tensor) -> Tensor:
        """Mean cosine of each key with the others, [H, n]; for each, its latest close neighbour does not count."""
        unit, count = normalize(keys, dim=-1), keys.shape[1]
        total = torch.zeros_like(keys[..., 0])
        step = max(1, CHUNK // max(1, len(keys) * count))
        for start in range(0, count, step):
            end = min(count, start + step)
            cosine = unit[:, start:end] @ unit.transpose(1, 2)
            chunk = torch.arange(start, end, device=keys.device)
            cosine[:, chunk - start, chunk] = 0
            close = cosine > self.options.similar
            order = torch.arange(1, count + 1, device=keys.device)
            latest = (close * order).argmax(dim=2, keepdim=True)
            spared = close.any(dim=2, keepdim=True)
            cosine.scatter_(2, latest, torch.where(spared, 0.0, cosine.gather(2, latest)))
            # Row i's exemption takes its latest neighbour's score down, so sums run over the first axis.
            total += cosine.sum(dim=1)
        return total / max(1, count)
