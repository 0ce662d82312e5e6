"""What a worker keeps of a request with a KV budget, from its prefill on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm.utils.torch_utils import async_tensor_h2d

from ..budget.kv import KvSpec
from ..catalogue import KV
from .gates import GatedPrompt, VisualGates
from .group_budgets import ONE_GROUP, GroupBudgets
from .prompt_queries import PromptQueries
from .query_window import QueryStore, StepPlan
from .strategies.base import TEXT, KvStrategy
from .token_sums import SumPlan
from .window_slots import WindowLimits, gated, sums


@dataclass(frozen=True)
class Stores:
    """Where a worker keeps what it sees of prompts.

    Attributes:
        window: the windows' queries.
        sums: sums over prompts' queries; None where there is no room for any.
        gates: gates of `dyvte` and what they read; None where none are configured.
    """

    window: QueryStore
    sums: PromptQueries | None = None
    gates: VisualGates | None = None

    def lack(self, spec: KvSpec) -> bool:
        """Whether there is no store for something that a budget's strategy looks at."""
        return (sums(spec) and self.sums is None) or (gated(spec) and self.gates is None)

    def arm(self, plans: StepPlans) -> None:
        """Take what is planned of the coming step."""
        self.window.arm(plans.window)
        if self.sums is not None:
            self.sums.arm(plans.sums)
        if self.gates is not None:
            self.gates.arm(plans.gates)

    def disarm(self) -> None:
        """Take nothing of the steps to come."""
        for store in (self.window, self.sums, self.gates):
            if store is not None:
                store.disarm()


@dataclass
class CachedRequest:
    """State that a worker keeps of a request with a KV budget.

    Attributes:
        budgets: its budget, within the engine's bounds, per group of layers.
        strategy: the strategy, with its options.
        media: int64 [prompt], media item of each prompt token, `TEXT` for text.
        items: per media item int64 [n], its prompt tokens; items without any are left out.
        seed: depends on the prompt only.
        window_slots: slots of the query store, W of them; none where the strategy looks at no queries.
        sum_slot: slot of the sums over the prompt's queries; None where the strategy takes none.
        gated: what gates read of the prompt; None where the strategy asks none.
        evicted: per group of layers logical length minus cached length.
        positions: by layer int64 [H, C], what the rows kept by the last compaction hold; absent before the first.
        carried: by layer, what the strategy keeps with those rows.
    """

    budgets: GroupBudgets
    strategy: KvStrategy
    media: Tensor
    items: tuple[Tensor, ...]
    seed: int
    window_slots: list[int]
    sum_slot: int | None = None
    gated: GatedPrompt | None = None
    evicted: list[int] = field(init=False)
    positions: dict[int, Tensor] = field(default_factory=dict)
    carried: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.evicted = [0] * len(self.budgets.counts)

    @property
    def prompt(self) -> int:
        """Prompt tokens."""
        return self.budgets.prompt

    @property
    def window(self) -> int:
        """Number of rows at the end that are always kept, W."""
        return self.budgets.spec.window

    def observed(self, start: int, end: int) -> range:
        """Those of consecutive positions whose queries may belong to the window of a next compaction."""
        first = self.budgets.observed_from(self.evicted) if self.window_slots else None
        return range(0) if first is None else range(max(start, end - self.window, first), end)

    def summed(self, start: int, end: int) -> range:
        """Those of consecutive positions whose queries belong to the sums over the prompt's."""
        if self.sum_slot is None:
            return range(0)
        return range(max(start, self.strategy.first_query), min(end, self.prompt))

    def slots_of(self, positions: range) -> list[int]:
        """Slots of the query store for consecutive positions; none where nothing is observed."""
        return [self.window_slots[position % self.window] for position in positions if self.window_slots]


@dataclass
class StepPlans:
    """Which tokens of a step go to which store.

    Attributes:
        window: tokens whose queries are kept.
        sums: those whose queries are summed up.
        gates: those whose hidden states are summed up.
    """

    window: StepPlan = field(default_factory=StepPlan)
    sums: SumPlan = field(default_factory=SumPlan)
    gates: SumPlan = field(default_factory=SumPlan)

    @classmethod
    def of(
        cls, requests: Iterable[CachedRequest | None], computed: Iterable[int], scheduled: Iterable[int]
    ) -> StepPlans:
        """Plan a step.

        Args:
            requests: those of the batch, in its order; None for those without a KV budget.
            computed: tokens of each that are computed when the step starts.
            scheduled: tokens of each that the step computes.
        """
        plans, start = cls(), 0
        for request, before, count in zip(requests, computed, scheduled, strict=True):
            if request is not None:
                plans._add(request, before, count, start)
            start += count
        return plans

    def _add(self, request: CachedRequest, before: int, count: int, start: int) -> None:
        observed = request.observed(before, before + count)
        self.window.source += [start + position - before for position in observed]
        self.window.target += request.slots_of(observed)
        summed = request.summed(before, before + count)
        if request.sum_slot is not None and summed:
            self.sums.parts.append((request.sum_slot, start + summed.start - before, start + summed.stop - before))
        if request.gated is not None:
            self.gates.parts += request.gated.parts(before, count, start)


def track(
    spec: KvSpec,
    prompt: Sequence[int],
    features: Sequence[Any],
    stores: Stores,
    limits: WindowLimits,
    layers: tuple[int, ...] = ONE_GROUP,
) -> CachedRequest:
    """State of a request that is about to be prefilled; acquires its slots of the stores, until `untrack`.

    Args:
        spec: its budget.
        prompt: prompt token ids, placeholders included.
        features: vLLM's multimodal features of the request.
        stores: where what is seen of it will be; all that its strategy wants have to be there.
        limits: size of the windows' store.
        layers: number of layers of each group of layers.
    """
    media = torch.full((len(prompt),), TEXT, dtype=torch.int64)
    for index, feature in enumerate(sorted(features, key=lambda one: one.mm_position.offset)):
        place = feature.mm_position
        inside = media[place.offset : place.offset + place.length]
        inside[slice(None) if place.is_embed is None else torch.as_tensor(place.is_embed, device="cpu")] = index
    digest = hashlib.blake2b(torch.tensor(list(prompt)).numpy().tobytes(), digest_size=8).digest()
    strategy = KV.create(spec.strategy, json.loads(spec.options))
    wanted, device = strategy.wanted(), stores.window.device
    slots = stores.window.acquire(limits.slots_of(spec, len(prompt)))
    sum_slot = stores.sums.acquire() if stores.sums is not None and "moments" in wanted else None
    gated = stores.gates.acquire(media) if stores.gates is not None and "gates" in wanted else None
    places = [feature.mm_position for feature in features]
    budgets = GroupBudgets.of(spec, len(prompt), places, limits, layers)
    # Looked up here, as finding them on the device would wait for it.
    rows = ((media == index).nonzero().squeeze(1) for index in range(len(features)))
    items = tuple(async_tensor_h2d(tokens, device=device) for tokens in rows if len(tokens))
    media = async_tensor_h2d(media, device=device)
    return CachedRequest(budgets, strategy, media, items, int.from_bytes(digest) >> 1, slots, sum_slot, gated)


def untrack(request: CachedRequest, stores: Stores) -> None:
    """Take back the slots of a request that has ended."""
    stores.window.release(request.window_slots)
    if request.sum_slot is not None:
        assert stores.sums is not None
        stores.sums.release(request.sum_slot)
    if request.gated is not None:
        assert stores.gates is not None
        stores.gates.release(request.gated)
