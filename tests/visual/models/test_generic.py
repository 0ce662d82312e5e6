"""The generic adapter before a model of our own: kept tokens reach its layers at their unpruned positions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.multimodal.utils import set_mm_embedding_modality

from vllm_prune.visual.item_plan import ItemPlan, field_name, unpruned
from vllm_prune.visual.models.generic import GenericModel
from vllm_prune.visual.models.segments import runs_of, thinned
from vllm_prune.visual.models.table import FAMILIES
from vllm_prune.visual.models.unpruned_prompt import counts_of

WIDTH, PAD = 4, 7
CONFIG = SimpleNamespace(
    scheduler_config=SimpleNamespace(max_num_batched_tokens=128),
    model_config=SimpleNamespace(
        get_inputs_embeds_size=lambda: WIDTH, served_model_name="model", model="model", use_mla=False
    ),
    additional_config={},
)


class Parent:
    """A model whose items have 2 x 3 visual tokens per frame, and whose tower puts out fixed features."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        self.positions = torch.empty(0)

    def get_language_model(self) -> torch.nn.Module:
        return torch.nn.Identity()

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        return [torch.arange(n * WIDTH, dtype=torch.float32).view(n, WIDTH) for n in kwargs["image_sizes"]]

    def embed_input_ids(self, input_ids: Tensor, embeddings: Any = None, *, is_multimodal: Any = None) -> Tensor:
        merged = torch.zeros(len(input_ids), WIDTH)
        merged[is_multimodal] = torch.cat(list(embeddings))
        return merged

    def get_mrope_input_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        """Rows and columns of each frame on axes of their own; text goes on behind the longer side."""
        starts = {first: i for one in features for i, (first, _) in enumerate(one.mm_position.extract_embeds_range())}
        columns, following, at = [], 0, 0
        while at < len(tokens):
            grid = torch.stack([torch.zeros(6), torch.arange(6) // 3, torch.arange(6) % 3]).long()
            part = grid if at in starts else torch.zeros(3, 1, dtype=torch.long)
            columns.append(part + following)
            following, at = following + int(part.max()) + 1, at + part.shape[1]
        positions = torch.cat(columns, 1)
        return positions, following - len(tokens)

    def forward(self, input_ids: Any, positions: Tensor) -> None:
        self.positions = positions.clone()


class OneRow(GenericModel, Parent):
    family = FAMILIES["InternVLForConditionalGeneration"]
    one_row = True


class OnGrid(GenericModel, Parent):
    family = FAMILIES["Qwen2VLForConditionalGeneration"]


class Compact(GenericModel, Parent):
    family = FAMILIES["Molmo2ForConditionalGeneration"]


PLANS = [
    ItemPlan("uniform", "{}", 5, 0, (3, 0, 2), None, "", (-1, 6, -1, 6, -2, 6, -1), (3, 2, 3)),
    None,
    ItemPlan("uniform", "{}", 2, 0, None, None, "", (6,), (1, 2, 3)),
]
UNPRUNED = ((-1, 6, -1),)


def prompt() -> tuple[list[int], list[Any], list[int], list[int]]:
    """Pruned tokens, features, unpruned tokens, and for each pruned token its place among these if it is text."""
    tokens, full, features, places = [1], [1], [], [0]
    for plan in PLANS:
        segments = plan.segments if plan is not None else UNPRUNED[0]
        counts = counts_of(plan) if plan is not None else runs_of(segments)
        item = [token for n in segments for token in [PAD if n > 0 else 2] * abs(n)]
        kept, is_embed = thinned(item, segments, counts)
        mask = is_embed(kept)
        data = {field_name("image"): SimpleNamespace(data=unpruned() if plan is None else plan.encode())}
        placed = PlaceholderRange(len(tokens), len(kept), None if mask.all() else mask)
        features.append(MultiModalFeatureSpec(data, "image", "hash", placed))  # type: ignore[arg-type]
        at, left = len(full), list(counts)
        for n in segments:
            places += range(at, at - n) if n < 0 else [-1] * left.pop(0)
            at += abs(n)
        tokens, full = [*tokens, *kept, 1], [*full, *item, 1]
        places.append(len(full) - 1)
    return tokens, features, full, places


def run(model: Any) -> tuple[Tensor, Tensor, int]:
    """Merged embeddings, the positions that the parent's layers see, and what is added for decoded tokens."""
    tokens, features, _, _ = prompt()
    rows = [unpruned() if plan is None else plan.encode() for plan in PLANS]
    shared = {"image_token_id": torch.tensor(PAD), "image_size": 3, "image_mean": None}
    outputs = model.embed_multimodal(image_prune=rows, image_sizes=[18, 6, 6], **shared)
    for output in outputs:
        set_mm_embedding_modality(output, "image")
    positions, delta = model.get_mrope_input_positions(tokens, features)
    media = torch.zeros(len(tokens), dtype=torch.bool)
    for feature in features:
        for first, last in feature.mm_position.extract_embeds_range():
            media[first : last + 1] = True
    merged = model.embed_input_ids(torch.tensor(tokens), outputs, is_multimodal=media)
    model.forward(None, positions.clone())
    return merged, model.positions, delta


@pytest.mark.parametrize("adapter", [OneRow, OnGrid])
def test_kept_tokens_stand_where_they_stood(adapter: type[Any]) -> None:
    model = adapter(vllm_config=CONFIG)
    merged, positions, delta = run(model)
    tokens, _, full, places = prompt()
    everything = [
        MultiModalFeatureSpec({}, "image", "hash", PlaceholderRange(0, len(full), torch.tensor(full) == PAD))  # type: ignore[arg-type]
    ]
    expected, of_parent = model.unpruned_positions(full, everything)
    # A visual token's features say which one of its item it is.
    slots = (torch.tensor(full) == PAD).nonzero()[:, 0]
    items = slots.split([18, 6, 6])
    embedded = [i for i, place in enumerate(places) if place < 0]
    owners = [0] * 5 + [1] * 6 + [2] * 2
    for i, owner in zip(embedded, owners, strict=True):
        places[i] = int(items[owner][int(merged[i, 0]) // WIDTH])
    assert torch.equal(positions.expand(3, -1), expected[:, places])
    assert positions.ndim == (1 if adapter.one_row else 2)
    assert delta == of_parent + len(full) - len(tokens)


def test_compact_positions_need_nothing() -> None:
    model = Compact(vllm_config=CONFIG)
    outputs = model.embed_multimodal(image_prune=[PLANS[2].encode()], image_sizes=[6])
    assert [tuple(rows.shape) for rows in outputs] == [(2, WIDTH)]


def test_without_a_plan_the_parent_s_outputs_pass() -> None:
    model = OneRow(vllm_config=CONFIG)
    outputs = model.embed_multimodal(image_prune=[unpruned()], image_sizes=[6])
    assert [tuple(rows.shape) for rows in outputs] == [(6, WIDTH)]
    assert len(model.embed_multimodal(image_sizes=[6])) == 1
    positions, delta = model.get_mrope_input_positions([1, 2, 3], [])
    assert positions.tolist() == [[0, 1, 2]] * 3
    assert delta == 0


def test_outputs_that_are_not_one_per_item_are_an_error() -> None:
    model = OneRow(vllm_config=CONFIG)
    with pytest.raises(RuntimeError, match="2 outputs for 1 items"):
        model.embed_multimodal(image_prune=[PLANS[2].encode()], image_sizes=[6, 6])


def test_vllm_finds_compiled_code_by_the_length_of_rotary_tables() -> None:
    """Code that was compiled for shorter ones, such as stock vLLM's, does not take these."""
    from vllm.config import VllmConfig

    OneRow(vllm_config=CONFIG)
    assert CONFIG.additional_config == {"vllm_prune_rows": 128 + 1024}
    assert VllmConfig(additional_config=CONFIG.additional_config).compute_hash() != VllmConfig().compute_hash()
