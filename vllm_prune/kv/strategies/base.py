"""What a KV strategy is: it sees one layer's cached rows and says how much each of them matters.

A strategy never sees an engine, a block or another request. The base class owns the guarantees: exactly
C rows per KV head, the last W always among them, ascending order, ties to the lower row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor

from ...signals import KvSignal
from ...visual.strategies.base import NoOptions
from ._depth import DepthBudget
from ._highest import keep_best

TEXT = -1
"""Value of `LayerView.media` for rows that belong to no image or video."""


class NoKvOptions(NoOptions):
    """Options of a KV strategy that has none, and the base of all others."""


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of queries before rotary embedding, in one layer.

    Attributes:
        mean: [H * G, D] float32.
        covariance: [H * G, D, D] float32.
    """

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class LayerView:
    """One layer's cache of one request at the moment of a compaction.

    H is the number of KV heads (of this tensor-parallel rank), G the query heads per KV head, L the cached
    rows, D the head size, W the window. Rows of different heads hold different tokens once a request has
    been compacted; `positions` says which.

    Attributes:
        keys: [H, L, D] float32, after rotary embedding.
        values: gives [H, L, D] float32; called only by strategies that need it.
        positions: [H, L] int64, position of each row in the request (0 is the first prompt token), ascending.
        media: [H, L] int64, index of the image or video that a row belongs to, in prompt order; `TEXT` for text.
        items: per image or video with any row int64 [n], its rows, the same in all heads; given at the first
            compaction only. Known without looking at the device.
        layer: index of the layer.
        gamma: share of the prompt that the budget keeps, C / L of the first compaction, in (0, 1].
        window: W, rows at the end that are always kept.
        scale: factor of the attention logits, usually 1/sqrt(D).
        queries: [W, H * G, D] float32, after rotary embedding, of the last W tokens in order; None unless needed.
        saliency: [H, L] float32, norm of each row's hidden state at the layer's input; None unless needed, and
            given at the first compaction only.
        normed_saliency: as `saliency`, behind the layer's input norm.
        rotation: [P, D] float32, cosines then sines of the rotary angles of P positions (first half | second
            half of each row: D/2 cosines, D/2 sines); None unless needed.
        coordinates: [3, L] int64, frame, row and column that attention rotates each row by (M-RoPE); given at the first
            compaction only, and None where a model has one position per token, or unless needed.
        moments: those of all queries of the prompt from `KvStrategy.first_query` on; None unless needed.
        exited: bool [], whether a trained gate in front of this layer has said that visual tokens can be left out from
            there on; None unless needed.
        logits: given a range of KV heads and one of window queries, gives [heads, G, queries, L] float32, causal
            attention logits, where a kernel computes them from the cache; None elsewhere.
        carried: [H, L] float32 each, what the strategy returned at the request's last compaction, for the rows
            that survived; zero for rows decoded since. Empty at the first compaction.
        first: whether this is the request's first compaction: all rows are there, and all heads hold the same tokens.
        head_offset: number of the first KV head among those of all tensor-parallel ranks.
        seed: 63-bit number that depends on the request's prompt only.
        total: sum of a tensor over all tensor-parallel ranks, which hold other heads. Every rank has to call it alike.
    """

    keys: Tensor
    values: Callable[[], Tensor]
    positions: Tensor
    media: Tensor
    items: tuple[Tensor, ...]
    layer: int
    gamma: float
    window: int
    scale: float
    queries: Tensor | None = None
    saliency: Tensor | None = None
    normed_saliency: Tensor | None = None
    rotation: Tensor | None = None
    coordinates: Tensor | None = None
    moments: Moments | None = None
    exited: Tensor | None = None
    logits: Callable[[slice, slice], Tensor] | None = None
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    first: bool = True
    head_offset: int = 0
    seed: int = 0
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor

    @property
    def rows(self) -> int:
        """Number of cached rows, L."""
        return int(self.keys.shape[1])


@dataclass(frozen=True)
class Scores:
    """Answer of a strategy.

    Attributes:
        rows: [H, L] float32, higher is kept first. Values of the last W rows do not matter.
        carry: [H, L] float32 each, to be handed back at the next compaction for the rows that survive.
    """

    rows: Tensor
    carry: Mapping[str, Tensor] = field(default_factory=dict)


class KvStrategy(ABC):
    """Base of all KV strategies; instances are immutable and hold validated options.

    Attributes:
        name: catalogue name, used in requests and metric labels.
        paper: citation with section or equation, or "ours".
        summary: one line for the catalogue table.
        modalities: always the cache; what the catalogue's tables call it.
        needs: signals that are captured only for strategies that declare them.
        quadratic: whether scoring takes time that grows with the square of the rows; decoding then waits longer
            between compactions, see `KvSpec.buffer_of`.
        layered: whether it divides a budget over groups of layers, and so needs an engine with several.
        once: whether it evicts after prefill only, and what is decoded stays.
        Options: pydantic model of the strategy's options.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    modalities: ClassVar[frozenset[str]] = frozenset({"cache"})
    needs: ClassVar[frozenset[KvSignal]] = frozenset()
    quadratic: ClassVar[bool] = False
    layered: ClassVar[bool] = False
    once: ClassVar[bool] = False
    Options: ClassVar[type[BaseModel]] = NoKvOptions

    def __init__(self, options: BaseModel | None = None) -> None:
        self.options = options if options is not None else self.Options()

    @abstractmethod
    def score(self, view: LayerView) -> Scores:
        """Score every cached row of one layer."""

    def wanted(self) -> frozenset[KvSignal]:
        """What these options need; a subset of `needs`."""
        return self.needs

    @property
    def first_query(self) -> int:
        """Position of the first token of a prompt whose query belongs to `LayerView.moments`."""
        return 0

    def by_head(self) -> bool:
        """Whether these options choose rows of a head by what is given for that head alone.

        Short layers then come together in one view, whose heads are those of all of them.
        """
        return False

    def waits_for_device(self) -> bool:
        """Whether the host has to wait for the device while these options choose."""
        return False

    def group_counts(self, budget: DepthBudget) -> tuple[int, ...]:
        """Rows that each group of layers keeps after a compaction, a pure function that scheduler and workers share."""
        return (budget.count,) * len(budget.layers)

    def unfit(self, head_size: int) -> str | None:
        """Why these options do not fit a model with heads of that size, and what to give instead; None if they do."""
        return None

    def select(self, view: LayerView, count: int) -> tuple[Tensor, Scores]:
        """Choose the rows to keep.

        Args:
            view: see `LayerView`; `view.window <= count`.
            count: C, rows that each KV head keeps, 1 <= C <= L.

        Returns:
            int64 [H, C], ascending and unique in each head, and the scores they came from.
        """
        scores = self.score(view)
        return keep_best(scores.rows, count, view.window), scores


PART = 1 << 23
"""Most attention weights that are held at once, 32 MiB of them; longer windows and prompts are scored in parts."""

EVERY = slice(None)


def window_attention(view: LayerView, heads: slice = EVERY, window: slice = EVERY) -> Tensor:
    """Attention that the last W queries give to every row, per query head (GUI-KV section 3, SnapKV equation 1).

    Softmax over all rows that a query may see: the query of window row w sees rows up to L - W + w. Memory grows
    with what is computed at once; `summed_attention` bounds it.

    Args:
        view: a layer.
        heads: KV heads to compute, as a range without a step.
        window: window queries to compute, as a range without a step.

    Returns:
        float32 [heads, G, window, L].
    """
    return window_logits(view, heads, window).softmax(dim=-1)


def window_logits(view: LayerView, heads: slice = EVERY, window: slice = EVERY) -> Tensor:
    """Causal attention logits behind `window_attention`, float32 [heads, G, window, L]."""
    return _window_logits(view, heads, window) if view.logits is None else view.logits(heads, window)


def _window_logits(view: LayerView, heads: slice, window: slice) -> Tensor:
    queries, keys = view.queries, view.keys[heads]
    assert queries is not None
    size, dim = queries.shape[0], queries.shape[-1]
    grouped = queries.view(size, len(view.keys), -1, dim)[window, heads].permute(1, 2, 0, 3)
    # One product per head: broadcasting over the group would copy the keys for each of its queries.
    logits = (grouped.flatten(1, 2) @ keys.transpose(1, 2)).mul_(view.scale)
    logits = logits.view(*grouped.shape[:3], view.rows)
    last = torch.arange(size, device=logits.device)
    logits[..., view.rows - size :].masked_fill_(last > last[window, None], float("-inf"))
    return logits


def summed_attention(view: LayerView, weights: Tensor | None = None) -> Tensor:
    """`window_attention`, summed over the window, in parts of at most `PART` weights (or one query's, if more).

    Args:
        view: a layer.
        weights: [H, G, W] of mean 1, how much each query counts; None where all count alike.

    Returns:
        float32 [H, G, L]; each row of a head sums to W.
    """

    def part(heads: slice, window: slice) -> Tensor:
        attention = window_attention(view, heads, window)
        if weights is not None:
            attention.mul_(weights[heads, :, window, None])
        return attention.sum(dim=2)

    return add_parts(view, part)


def add_parts(view: LayerView, part: Callable[[slice, slice], Tensor]) -> Tensor:
    """Sum over the window of what is computed from at most `PART` attention weights at once (or one query's, if more).

    Args:
        view: a layer.
        part: given a range of KV heads and one of window queries, gives [heads, ...] summed over those queries.

    Returns:
        [H, ...].
    """
    queries, heads = view.queries, len(view.keys)
    assert queries is not None
    window, group = len(queries), queries.shape[1] // heads
    if heads * group * window * view.rows <= PART:
        return part(EVERY, EVERY)
    step = max(1, PART // (group * view.rows))
    totals = []
    for head in range(heads):
        total: Tensor | None = None
        for start in range(0, window, step):
            summand = part(slice(head, head + 1), slice(start, start + step))
            total = summand if total is None else total.add_(summand)
        assert total is not None
        totals.append(total)
    return torch.cat(totals)
