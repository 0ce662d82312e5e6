"""Qwen2.5-VL: one run of placeholders per image or video, kept tokens chosen over the whole item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
    cast_overflow_tensors,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ...grid import Grid
from ..frontend.processor import PrunedProcessor
from ..frontend.video_loader import ShortVideoBackend as ShortVideoBackend
from ..item_plan import plan_of
from .positions import Run, grid_positions
from .qwen_vl import PrunedModel, slots_of


class Qwen25VLProcessor(PrunedProcessor):
    """Mixin before a processor of the Qwen2.5-VL kind: reserves K placeholders per item."""

    info: Any

    def rotary_table_size(self) -> int:
        """VLLM builds this family's rotary table four times as long as the model's context."""
        return 4 * super().rotary_table_size()

    def position_span(self, modality: str, grid: Grid) -> int:
        """At most this far: the temporal step depends on the frame rate, two grid steps a second is the usual one."""
        step = 1 if modality == "image" else int(self.info.get_hf_config().vision_config.tokens_per_second)
        return max(grid.frames * step, grid.rows, grid.cols)


class Qwen25VLModel(PrunedModel):
    """Mixin before a model with Qwen2.5-VL's tower and positions."""

    config: Any

    @property
    def output_width(self) -> int:
        """Hidden size of the language model."""
        return int(self.visual.out_hidden_size)

    def _seconds(self, seconds: Any) -> float:
        # The field is float32; positions must use that value, not one recomputed from the frame rate.
        per_second = getattr(self.config.vision_config, "tokens_per_second", 1.0)
        return (1.0 if seconds is None else float(seconds.item())) * per_second

    def frame_step(self, modality: str, kwargs: dict[str, Any], index: int) -> float:
        """Temporal positions per grid step; depends on the sampled frame rate."""
        if modality == "image":
            return 1.0
        seconds = kwargs.get("second_per_grid_ts")
        return self._seconds(None if seconds is None else seconds[index])

    def runs_of(self, feature: Any, input_tokens: list[int]) -> list[Run]:
        """One run; text continues at the largest coordinate of the unpruned grid plus one."""
        frames, height, width = feature.data[f"{feature.modality}_grid_thw"].data.tolist()
        step = 1.0
        if feature.modality == "video":
            seconds = feature.data.get("second_per_grid_ts")
            step = self._seconds(None if not seconds else seconds.data)
        grid = grid_positions(frames, height // self._merge, width // self._merge, step)
        pruned = plan_of(feature.data, feature.modality) is not None
        extent = int(grid.max()) + 1
        return [Run(slots_of(feature), feature.mm_position.offset, extent, None if pruned else grid)]

    def tower_start(self, pixels: Tensor, meta: dict[str, Any]) -> Tensor:
        """See `TowerCut.tower_start`; the tower's order is that of its windows."""
        visual = self.visual
        hidden = visual.patch_embed(visual.input_norm(pixels.to(device=visual.device), visual.dtype))
        cells = hidden.view(len(meta["window_index"]), int(visual.spatial_merge_unit), -1)
        return cells[meta["window_index"]].view(len(hidden), 1, -1)

    def tower_blocks(self, hidden: Tensor, numbers: range, meta: dict[str, Any], levels: dict[int, Tensor]) -> Tensor:
        """See `TowerCut.tower_blocks`. Survivors attend inside the windows that they had before the cut."""
        for number in numbers:
            full = number in self.visual.fullatt_block_indexes
            hidden = self.visual.blocks[number](
                hidden,
                cu_seqlens=meta["cu_seqlens" if full else "cu_window_seqlens"],
                rotary_pos_emb_cos=meta["rotary_pos_emb_cos"],
                rotary_pos_emb_sin=meta["rotary_pos_emb_sin"],
                # Of the whole batch, which is an upper bound for what is left of it.
                max_seqlen=meta["max_seqlen_full" if full else "max_seqlen_window"],
                sequence_lengths=None,
            )
        return hidden

    def tower_end(self, hidden: Tensor, levels: dict[int, Tensor]) -> Tensor:
        """See `TowerCut.tower_end`."""
        return self.visual.merger(cast_overflow_tensors(hidden) if hidden.dtype == torch.float16 else hidden)

    def tower_attention_blocks(self) -> Sequence[Any]:
        """Full-attention blocks; window blocks see too little of the image."""
        full = sorted(self.visual.fullatt_block_indexes, reverse=True)
        return [self.visual.blocks[i].attn for i in full if i < len(self.visual.blocks)]


class PruneQwen25VLProcessor(Qwen25VLProcessor, Qwen2_5_VLMultiModalProcessor):
    """The processor of Qwen2.5-VL with budgets."""


@MULTIMODAL_REGISTRY.register_processor(
    PruneQwen25VLProcessor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PruneQwen25VL(Qwen25VLModel, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with per-request visual budgets."""
