"""From a pruned prompt to the positions that its tokens have in the unpruned one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

from vllm_prune.visual.item_plan import ItemPlan, field_name
from vllm_prune.visual.models.segments import mask_of, runs_of, segments_of, thinned
from vllm_prune.visual.models.unpruned_prompt import UnprunedPrompt, counts_of, run_starts

PAD, TEXT = 7, 1


def feature(offset: int, mask: torch.Tensor, plan: ItemPlan | None) -> Any:
    row = {} if plan is None else {field_name("image"): SimpleNamespace(data=plan.encode())}
    placed = PlaceholderRange(offset, len(mask), None if mask.all() else mask)
    return MultiModalFeatureSpec(row, "image", "hash", placed)  # type: ignore[arg-type]


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=4), st.data())
def test_positions_are_those_of_the_unpruned_prompt(items: list[list[bool]], data: st.DataObject) -> None:
    """Each kept token of a run that is cut takes the run's first place, all else its own."""
    tokens, features, full, expected = [TEXT], [], [TEXT], [0]
    for flags in items:
        flags = [True, *flags]
        segments = segments_of(torch.tensor(flags), len(flags))
        counts = [data.draw(st.integers(i == 0, n)) for i, n in enumerate(runs_of(segments))]
        unpruned = [PAD if flag else TEXT for flag in flags]
        cut = data.draw(st.booleans())
        kept, is_embed = thinned(unpruned, segments, counts if cut else runs_of(segments))
        plan = ItemPlan("uniform", "{}", sum(counts), 0, tuple(counts), None, "", segments, (1, 1, 1)) if cut else None
        features.append(feature(len(tokens), is_embed(kept), plan))
        at, waiting = len(full), list(counts)
        for n in segments:
            if n < 0 or not cut:
                expected += range(at, at + abs(n))
            else:
                expected += [at] * waiting.pop(0)
            at += abs(n)
        tokens, full = [*tokens, *kept, TEXT], [*full, *unpruned, TEXT]
        expected.append(len(full) - 1)
    prompt = UnprunedPrompt.of(tokens, features)
    assert prompt.tokens == full
    assert prompt.source == expected
    for one, flags in zip(prompt.features, items, strict=True):
        assert one.mm_position.length == len(flags) + 1
        assert one.mm_position.get_num_embeds() == 1 + sum(flags)


def test_marks_are_among_the_tokens_of_their_run() -> None:
    plan = ItemPlan("uniform", "{}", 2, 0, None, None, "", (6,), (1, 2, 2), (1, 1))
    assert counts_of(plan) == [4]
    prompt = UnprunedPrompt.of([TEXT, *[PAD] * 4, TEXT], [feature(1, torch.ones(4).bool(), plan)])
    assert prompt.tokens == [TEXT, *[PAD] * 6, TEXT]
    assert prompt.source == [0, 1, 1, 1, 1, 7]


def test_run_starts() -> None:
    segments = (-2, 3, -1, 2)
    assert run_starts(segments) == [0, 0, 0, 3, 3]
    assert mask_of(segments).tolist() == [False, False, True, True, True, False, True, True]
