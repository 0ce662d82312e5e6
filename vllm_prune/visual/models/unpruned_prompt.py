"""The prompt as it would be without budgets, so that a model's own position function can be asked about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from vllm.multimodal.inputs import PlaceholderRange

from ..item_plan import ItemPlan, plan_of
from .positions import slots_of
from .segments import Segments, mask_of, runs_of, with_counts


@dataclass
class UnprunedPrompt:
    """A prompt with its pruned items at full length.

    Attributes:
        tokens: token ids.
        features: vLLM's feature specs of its items, each at its new place.
        source: for each token of the pruned prompt, the one whose position it takes here. Kept visual tokens take that
            of their run's first token; how far they are from it travels with their embedding.
    """

    tokens: list[int] = field(default_factory=list)
    features: list[Any] = field(default_factory=list)
    source: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, input_tokens: list[int], features: Sequence[Any]) -> UnprunedPrompt:
        """The prompt of a request, from its pruned token ids and its items in prompt order."""
        prompt, at = cls(), 0
        for feature in features:
            offset, length = feature.mm_position.offset, feature.mm_position.length
            prompt._copy(input_tokens[at:offset])
            first, plan = len(prompt.tokens), plan_of(feature.data, feature.modality)
            if plan is None:
                placed = replace(feature.mm_position, offset=first)
                prompt._copy(input_tokens[offset : offset + length])
            else:
                assert plan.segments is not None
                placed = placeholder(plan.segments, first)
                pad = input_tokens[slots_of(feature)[0]]
                prompt._expand(input_tokens[offset : offset + length], plan, pad)
            prompt.features.append(replace(feature, mm_position=placed))
            at = offset + length
        prompt._copy(input_tokens[at:])
        return prompt

    def _copy(self, tokens: list[int]) -> None:
        self.source += range(len(self.tokens), len(self.tokens) + len(tokens))
        self.tokens += tokens

    def _expand(self, kept: list[int], plan: ItemPlan, pad: int) -> None:
        assert plan.segments is not None
        at = 0
        for n, count in with_counts(plan.segments, counts_of(plan)):
            if n < 0:
                self._copy(kept[at : at + count])
            else:
                self.source += [len(self.tokens)] * count
                self.tokens += [pad] * n
            at += count


def counts_of(plan: ItemPlan) -> Sequence[int]:
    """Kept tokens of each embedded run, with the marks among them."""
    return [plan.count + sum(plan.marks)] if plan.per_frame is None else plan.per_frame


def placeholder(segments: Segments, offset: int) -> PlaceholderRange:
    """Where vLLM would place an unpruned item."""
    mask = mask_of(segments)
    return PlaceholderRange(offset, len(mask), None if mask.all() else mask)


def item_alone(plan: ItemPlan, modality: str, data: dict[str, Any]) -> tuple[list[int], Any]:
    """A prompt that is one unpruned item: its tokens, of which only the number counts, and its feature spec.

    Args:
        plan: of the item.
        modality: "image" or "video".
        data: the item's fields.
    """
    assert plan.segments is not None
    fields = {name: SimpleNamespace(data=value) for name, value in data.items()}
    placed = placeholder(plan.segments, 0)
    return [0] * placed.length, SimpleNamespace(modality=modality, data=fields, mm_position=placed)


def run_starts(segments: Segments) -> list[int]:
    """For each visual token of an item the number of its run's first one, [M]."""
    starts: list[int] = []
    for n in runs_of(segments):
        starts += [len(starts)] * n
    return starts
