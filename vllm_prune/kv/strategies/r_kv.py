"""R-KV: attention against redundancy, for long generations."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from ._pooling import Kernel, max_pool
from ._probe import WindowOptions, probe_weights
from .base import KvStrategy, LayerView, Scores, add_parts, window_logits

CHUNK = 1 << 22
"""Most similarities that are held at once."""


class RKvOptions(WindowOptions):
    """Options of `r_kv`.

    Attributes:
        balance: weight of attention; redundancy has the rest.
        pooling: kernel of the maximum pooling of attention, odd.
        similar: cosine above which one key counts as a repeat of another.
    """

    balance: Annotated[float, Field(ge=0, le=1)] = 0.07
    pooling: Kernel = 7
    similar: Annotated[float, Field(ge=-1, le=1)] = 0.5


class RKv(KvStrategy):
    """Rows that the window attends to and whose keys are not similar to those of other rows.

    As the authors' code has it: the largest logit of a head's query group stands for the group, attention is a softmax
    over the rows in front of the window, and redundancy one over all rows.
    """

    name = "r_kv"
    paper = "R-KV, arXiv 2505.24133, section 3"
    summary = "attended rows that are not repeats; for long answers"
    needs = frozenset({"queries"})
    quadratic = True
    Options = RKvOptions
    options: RKvOptions

    def score(self, view: LayerView) -> Scores:
        """Weigh attention against redundancy."""
        free, weights = view.rows - view.window, probe_weights(view, self.options)

        def attended(heads: slice, window: slice) -> Tensor:
            attention = window_logits(view, heads, window).amax(dim=1)[..., :free].softmax(dim=-1)
            if weights is not None:
                # The group has one attention, so its queries have one weight.
                attention = attention * weights[heads, :, window].mean(dim=1)[..., None]
            return attention.sum(dim=1)

        attention = max_pool(add_parts(view, attended) / view.window, self.options.pooling)
        redundancy = self._similarity(view.keys).softmax(dim=1)[:, :free]
        rows = torch.zeros_like(view.keys[..., 0])
        rows[:, :free] = self.options.balance * attention - (1 - self.options.balance) * redundancy
        return Scores(rows)

    def _similarity(self, keys: Tensor) -> Tensor:
        """Mean cosine of each key with the others, [H, L]; for each, its latest close neighbour does not count.

        Of a key without a close neighbour the first row does not count, as the authors' search for the latest gives 0.
        """
        unit, count = normalize(keys, dim=-1), keys.shape[1]
        total = torch.zeros_like(keys[..., 0])
        step = max(1, CHUNK // max(1, len(keys) * count))
        for start in range(0, count, step):
            end = min(count, start + step)
            cosine = unit[:, start:end] @ unit.transpose(1, 2)
            chunk = torch.arange(start, end, device=keys.device)
            cosine[:, chunk - start, chunk] = 0
            order = torch.arange(1, count + 1, device=keys.device)
            latest = ((cosine > self.options.similar) * order).argmax(dim=2, keepdim=True)
            cosine.scatter_(2, latest, 0.0)
            # Row i's exemption takes its latest neighbour's score down, so sums run over the first axis.
            total += cosine.sum(dim=1)
        return total / max(1, count)
