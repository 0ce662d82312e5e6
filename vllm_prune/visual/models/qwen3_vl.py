"""Qwen3-VL: timestamps stand between frames, so every frame has a fixed count; deepstack rows go with their cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ...grid import Grid
from ..frontend.processor import PrunedProcessor
from ..item_plan import ItemPlan, plan_of
from .positions import Run, grid_positions
from .qwen_vl import PrunedModel, slots_of


class Qwen3VLProcessor(PrunedProcessor):
    """Mixin before a processor of the Qwen3-VL kind: reserves the frame's count after every timestamp."""

    info: Any
    counts_per_frame = True

    def position_span(self, modality: str, grid: Grid) -> int:
        """The longer side, once per frame; the rotary table has no spare rows for it."""
        return grid.frames * max(grid.rows, grid.cols)

    def pruned_placeholder(self, modality: str, item: Any, plan: ItemPlan) -> Any:
        """Token ids of an image; timestamps, markers and token ids of a video."""
        if modality == "image":
            return super().pruned_placeholder(modality, item, plan)
        assert plan.per_frame is not None
        config = self.info.get_hf_config()
        return self.get_video_repl(  # type: ignore[attr-defined]
            tokens_per_frame=list(plan.per_frame),
            timestamps=item["timestamps"].data,
            tokenizer=self.info.get_tokenizer(),
            vision_start_token_id=config.vision_start_token_id,
            vision_end_token_id=config.vision_end_token_id,
            video_token_id=config.video_token_id,
            select_token_id=True,
        )


class Qwen3VLModel(PrunedModel):
    """Mixin before a model with Qwen3-VL's tower and positions."""

    config: Any
    visual_dim: int
    multiscale_dim: int
    use_deepstack: bool

    @property
    def output_width(self) -> int:
        """Visual width plus one block of columns per deepstack level."""
        return int(self.visual_dim + (self.multiscale_dim if self.use_deepstack else 0))

    @property
    def feature_width(self) -> int:
        """The final layer's features; deepstack columns follow."""
        return int(self.visual_dim)

    def frame_step(self, modality: str, kwargs: dict[str, Any], index: int) -> float:
        """Every frame is a grid of its own."""
        return 0.0

    def runs_of(self, feature: Any, input_tokens: list[int]) -> list[Run]:
        """One run per frame; text advances by the longer side of the unpruned frame."""
        frames, height, width = feature.data[f"{feature.modality}_grid_thw"].data.tolist()
        rows, cols = height // self._merge, width // self._merge
        plan = plan_of(feature.data, feature.modality)
        counts = _frame_counts(plan, frames, rows * cols)
        relative = None if plan else grid_positions(1, rows, cols)
        slots, runs, at = slots_of(feature), [], 0
        for start, count in zip(self._frame_starts(feature, input_tokens), counts, strict=True):
            runs.append(Run(slots[at : at + count], start, max(rows, cols), relative))
            at += count
        return runs

    def _frame_starts(self, feature: Any, input_tokens: list[int]) -> list[int]:
        """Prompt index after each frame's start marker; found by the marker, as a frame may keep nothing."""
        first = feature.mm_position.offset
        if feature.modality == "image":
            return [first]
        marker = self.config.vision_start_token_id
        return [i + 1 for i in range(first, first + feature.mm_position.length) if input_tokens[i] == marker]

    def tower_start(self, pixels: Tensor, meta: dict[str, Any]) -> Tensor:
        """See `TowerCut.tower_start`."""
        visual = self.visual
        hidden = visual.patch_embed(visual.input_norm(pixels.to(device=visual.device), visual.dtype))
        # Not needed later, and as large as the hidden states.
        return (hidden + meta.pop("pos_embeds")).unsqueeze(1)

    def tower_blocks(self, hidden: Tensor, numbers: range, meta: dict[str, Any], levels: dict[int, Tensor]) -> Tensor:
        """See `TowerCut.tower_blocks`. Deepstack features from before the cut give up the same cells."""
        for number in numbers:
            hidden = self.visual.blocks[number](
                hidden,
                cu_seqlens=meta["cu_seqlens"],
                rotary_pos_emb_cos=meta["rotary_pos_emb_cos"],
                rotary_pos_emb_sin=meta["rotary_pos_emb_sin"],
                max_seqlen=meta["max_seqlen"],
                sequence_lengths=None,
            )
            if number in self.visual.deepstack_visual_indexes:
                levels[number] = hidden
        return hidden

    def level_blocks(self) -> Sequence[int]:
        """Blocks whose outputs go to the language model's first layers."""
        return [int(number) for number in self.visual.deepstack_visual_indexes]

    def tower_end(self, hidden: Tensor, levels: dict[int, Tensor]) -> Tensor:
        """See `TowerCut.tower_end`."""
        visual = self.visual
        mergers = zip(visual.deepstack_merger_list, visual.deepstack_visual_indexes, strict=True)
        return torch.cat([visual.merger(hidden), *(merger(levels[number]) for merger, number in mergers)], dim=1)

    def tower_attention_blocks(self) -> Sequence[Any]:
        """All blocks attend over the whole frame."""
        return [block.attn for block in reversed(self.visual.blocks)]


def _frame_counts(plan: ItemPlan | None, frames: int, per_frame: int) -> Sequence[int]:
    if plan is None:
        return [per_frame] * frames
    return plan.per_frame if plan.per_frame is not None else [plan.count]


class PruneQwen3VLProcessor(Qwen3VLProcessor, Qwen3VLMultiModalProcessor):
    """The processor of Qwen3-VL with budgets."""


@MULTIMODAL_REGISTRY.register_processor(
    PruneQwen3VLProcessor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PruneQwen3VL(Qwen3VLModel, Qwen3VLForConditionalGeneration):
    """Qwen3-VL with per-request visual budgets."""
