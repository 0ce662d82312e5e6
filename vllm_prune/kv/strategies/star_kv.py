"""STaR-KV: heads weigh by how much their attention follows places on the screen; what stays attended fades with age."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...signals import KvSignal
from ._pooling import Kernel, average_pool
from ._probe import WindowOptions, probe_weights
from ._screens import NormSource, cells, saliency_boost, signal_of
from .base import KvStrategy, LayerView, Scores, summed_attention

RANKS = 8
"""Classes of equally many visual tokens, by how much attention they receive."""
BINS = 8
"""Parts of a screen's height, and of its width."""
CROWD = 16
"""Visual tokens that a part of a screen holds on average at least, where information is estimated: with one in each,
its place would tell everything of any token, in every head alike."""


class StarKvOptions(WindowOptions):
    """Options of `star_kv`.

    Attributes:
        alpha: weight of the spatial saliency.
        tau: temperature of its softmax.
        pooling: kernel of the average pooling of attention, odd.
        norm_source: which norms are salient, see `gui_kv`.
        balance: how far heads weigh by their mutual information with places on the screen; with 0 all weigh alike.
        fading: how fast an earlier screenshot fades with each one after it, for a head whose attention stays in place.
        memory: share of the running mean of a head's attention over places that each screenshot leaves as it is.
        sharpest: exponent's divisor for a head whose scores lie on one row.
        flattest: that for a head whose scores are all equal; at least `sharpest`.
    """

    alpha: Annotated[float, Field(ge=0)] = 2.0
    tau: Annotated[float, Field(gt=0)] = 3.5
    pooling: Kernel = 5
    norm_source: NormSource = "normed"
    balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    fading: Annotated[float, Field(ge=0)] = 0.1
    memory: Annotated[float, Field(ge=0, le=1)] = 0.9
    sharpest: Annotated[float, Field(gt=0)] = 0.75
    flattest: Annotated[float, Field(gt=0)] = 1.25

    @model_validator(mode="after")
    def _ordered(self) -> StarKvOptions:
        if self.flattest < self.sharpest:
            raise ValueError("flattest is below sharpest")
        return self


class StarKv(KvStrategy):
    """One choice of rows for all heads of a layer, on all tensor-parallel ranks.

    The paper's running profiles go over the successive requests of an agent. What a request keeps must not depend on
    others here, so the profile is the request's own: mutual information comes from its current screenshot, and its
    screenshots in their order stand for the steps.

    The authors' code weighs the mean score of all heads, for each row by the weight and the stability of the head that
    scores it most. That head may be another rank's, so here each head's shares are weighed, and summed over the ranks.
    The entropy's temperature acts before that sum; behind it, as in their code, it would change no order.
    """

    name = "star_kv"
    paper = "STaR-KV, arXiv 2606.01790; profiles from the request's own screenshots"
    summary = "what the last tokens attend to, above all in heads that follow places; stably attended history fades"
    needs = frozenset({"queries", "saliency", "values", "coordinates"})
    Options = StarKvOptions
    options: StarKvOptions

    def wanted(self) -> frozenset[KvSignal]:
        """Only the norms that the options name."""
        return frozenset({"queries", "coordinates", signal_of(self.options.norm_source)})

    def score(self, view: LayerView) -> Scores:
        """Attention is scored anew at every compaction; the rest is the prompt's."""
        options, free = self.options, view.rows - view.window
        attention = summed_attention(view, probe_weights(view, options)).mean(dim=1)
        if view.first:
            boost = saliency_boost(view, options.alpha, options.tau, options.norm_source)
            stale = self._staleness(view, attention)
            weight = self._weights(view, attention)
        else:
            # Every surviving row of a head carries the head's weight; the first row always is one.
            boost, stale, weight = (view.carried[name] for name in ("boost", "stale", "weight"))
            weight = weight[:, :1]
        scores = average_pool(attention[:, :free], options.pooling) + boost[:, :free]
        shaped = self._shape(scores * torch.exp(-options.fading * stale[:, :free]))
        rows = torch.zeros_like(attention)
        rows[:, :free] = view.total((weight * shaped).sum(dim=0))
        return Scores(rows, {"boost": boost, "stale": stale, "weight": weight.expand_as(rows)})

    def _weights(self, view: LayerView, attention: Tensor) -> Tensor:
        """Weight of each head, [H, 1]; those of all ranks' heads sum to 1."""
        information = attention.new_zeros(len(attention))
        if view.items:
            current = view.items[-1]
            information = _mutual_information(attention[:, current], cells(view, current))
        # Bounded by the logarithm of RANKS, so this cannot overflow.
        power = information.exp()
        every, heads = view.total(torch.stack([power.sum(), torch.ones_like(power).sum()]))
        return ((1 - self.options.balance) / heads + self.options.balance * power / every)[:, None]

    def _staleness(self, view: LayerView, attention: Tensor) -> Tensor:
        """Screenshots since a row's own, times how much the head's attention stays in place, [H, L]; 0 for text."""
        stale = torch.zeros_like(attention)
        if len(view.items) < 2:
            return stale
        *before, current = (_pattern(view, attention, item) for item in view.items)
        mean = before[0]
        for pattern in before[1:]:
            mean = self.options.memory * mean + (1 - self.options.memory) * pattern
        stability = torch.nn.functional.cosine_similarity(current, mean, dim=1)[:, None]
        for age, item in enumerate(reversed(view.items[:-1]), start=1):
            stale[:, item] = age * stability
        return stale

    def _shape(self, scores: Tensor) -> Tensor:
        """Shares p^(1/T) of [H, n] scores, each head's sum 1; T grows with the entropy of its shares."""
        shares = _shares(scores)
        entropy = -torch.xlogy(shares, shares).sum(dim=1, keepdim=True)
        level = entropy / math.log(max(2, scores.shape[1]))
        heat = self.options.sharpest + (self.options.flattest - self.options.sharpest) * level
        return _shares(shares ** (1 / heat))


def _shares(amounts: Tensor) -> Tensor:
    """Amounts over their sum, along the last axis; where all are zero they stay so."""
    return amounts / amounts.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(amounts.dtype).tiny)


def _bins(places: Tensor, bins: int) -> Tensor:
    """Part of the screen of each visual token, int64 [n] below bins * bins, for int64 [3, n] cells."""
    inside = places[1:]
    low = inside.amin(dim=1, keepdim=True)
    row, column = (inside - low) * bins // (inside.amax(dim=1, keepdim=True) - low + 1)
    return row * bins + column


def _pattern(view: LayerView, attention: Tensor, item: Tensor) -> Tensor:
    """Share of each part of a screenshot in the attention that it receives, [H, BINS * BINS]."""
    # A product in the place of a scattered sum, whose order is not fixed on a GPU.
    member = torch.nn.functional.one_hot(_bins(cells(view, item), BINS), BINS * BINS).to(attention.dtype)
    return _shares(attention[:, item] @ member)


def _mutual_information(attention: Tensor, places: Tensor) -> Tensor:
    """Mutual information of attention's rank and place, in nats, [H]; for [H, n] attention and int64 [3, n] cells."""
    heads, count = attention.shape
    bins = max(1, min(BINS, math.isqrt(count // CROWD)))
    order = attention.argsort(dim=1, stable=True)
    rank = torch.arange(count, device=attention.device).expand(heads, -1) * RANKS // count
    joint = attention.new_zeros(heads, RANKS * bins * bins)
    # Sums of ones are exact in any order.
    joint.scatter_add_(1, rank * bins * bins + _bins(places, bins)[order], torch.ones_like(attention))
    shares = (joint / count).view(heads, RANKS, bins * bins)
    parts = (shares.flatten(1), shares.sum(dim=2), shares.sum(dim=1))
    both, by_rank, by_place = (torch.xlogy(part, part).sum(dim=1) for part in parts)
    return both - by_rank - by_place
