"""Molmo2, videos only: every frame keeps its timestamp, its start and end marks, and its count of cells.

Experimental. vLLM serves this family with bidirectional attention inside the visual tokens of a frame, which the CPU
backend lacks, and it has never run here on anything else; everything but that mask has (see `doctor`).

Positions are those of the shortened prompt. The family has one position per token and vLLM counts it from the prompt,
and what STTS was trained on (arXiv 2603.18004) is, as far as its released half shows, the same: its preprocessor is
given the share that is kept and lays the sequence out before the tower has run. So unlike with M-RoPE no place is kept
for what was dropped, and a model that was not trained with pruning sees frames that are closer to each other.

Bidirectional ranges need nothing from us: vLLM takes them from the runs of embedded tokens, one per frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.model_executor.models.molmo2 import (
    Molmo2DummyInputsBuilder,
    Molmo2ForConditionalGeneration,
    Molmo2MultiModalProcessor,
    Molmo2ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.utils.torch_utils import async_tensor_h2d

from ...budget.canonical import VisualSpec
from ...budget.errors import BudgetError
from ...config.worker_facts import WorkerFacts
from ...grid import Grid
from ...signals import VisualSignal
from ...telemetry import metrics
from ..frontend.granted_item import Grants
from ..frontend.item_cache import CHANNELS
from ..frontend.processor import PrunedProcessor
from ..item_plan import ItemPlan, decode, field_name
from ..scorers.tower_shape import MOLMO2_SIDE
from ..scorers.trained import networks_of
from ..strategies.base import Cells
from ..tower.feature_cache import refuse_feature_cache
from ..tower.molmo2 import FrameAttention, FrameTower, joined_pooling
from ..tower.scored_cut import TowerScorer
from ..tower.select import PrunePoint, build_cut, kept_rows, prune_point
from ..tower.signals import Captures, ItemSource, attended, needed

FLAT = {"pixel_values_videos": "video_num_crops", "video_token_pooling": "video_num_pooled_patches",
        "video_tokens": "num_video_tokens"}  # fmt: skip
"""Fields with the rows of all videos one after the other, and the field with the number of rows of each."""
EACH = ("video_num_crops", "video_num_pooled_patches", "video_num_patches", "num_video_tokens")
"""Fields with one entry per video."""
MARKS = 2
"""Embedded tokens of a frame beside its cells: its start and its end."""


class PruneMolmo2Processor(PrunedProcessor, Molmo2MultiModalProcessor):
    """Reserves the frame's count between its marks."""

    counts_per_frame = True

    def cell_side(self) -> int:
        """See `GridItems.cell_side`."""
        return MOLMO2_SIDE

    def _frame(self) -> Grid:
        cols, rows = self.info.get_base_grid_size(self.info.get_hf_processor().video_processor)
        return Grid(1, rows, cols)

    def grids_of(self, modality: str, data: Any) -> list[Grid]:
        """See `GridItems.grids_of`; images have none, as they are not pruned."""
        frames = data.get("video_num_crops") if modality == "video" else None
        frame = self._frame()
        return [] if frames is None else [Grid(count, frame.rows, frame.cols) for count in frames.tolist()]

    def patches_of(self, modality: str, data: Any, index: int) -> Any:
        """See `GridItems.patches_of`. Raises ValueError where cells do not tile the frames."""
        frames, cells = data["video_num_crops"].tolist(), data["video_num_pooled_patches"].tolist()
        first, start = sum(frames[:index]), sum(cells[:index])
        pixels = data["pixel_values_videos"][first : first + frames[index]]
        frame, patches = self._frame(), pixels.shape[1]
        pooling = data["video_token_pooling"][start : start + cells[index]]
        if self.info.get_hf_processor().video_use_col_tokens:
            raise ValueError(
                "this checkpoint writes column tokens into videos; send the request without a video budget"
            )
        if patches != frame.tokens * MOLMO2_SIDE**2 or not torch.equal(pooling, self._tiles(frames[index])):
            raise ValueError("this checkpoint's cells are not 3 x 3 patches that tile the frames; send no video budget")
        return pixels.flatten(0, 1)

    def _tiles(self, frames: int) -> Tensor:
        """Patches of each cell, int64 [M, 9], where cells tile the frames in raster order."""
        frame, side = self._frame(), MOLMO2_SIDE
        patches = torch.arange(frames * frame.tokens * side**2).view(frames, frame.rows, side, frame.cols, side)
        return patches.transpose(2, 3).reshape(-1, side**2)

    def _keep_cells(self, base: str, patches: Any) -> Cells:
        # This family's patches are in raster order, and their values pixel by pixel.
        rows = patches[self._tiles(len(patches) // (self._frame().tokens * MOLMO2_SIDE**2)).flatten()]
        return super()._keep_cells(base, rows.view(len(rows), -1, CHANNELS).transpose(1, 2).flatten(1))

    def tokens_of(self, modality: str, placed: Any) -> int:
        """See `GridItems.tokens_of`; the marks of frames are text."""
        embedded = super().tokens_of(modality, placed)
        return embedded - MARKS * len(placed.extract_embeds_range()) if modality == "video" else embedded

    def image_tokens(self, width: int, height: int) -> int:
        """See `GridItems.image_tokens`."""
        processor = self.info.get_hf_processor()
        return int(self.info.get_num_image_tokens(image_height=height, image_width=width, processor=processor))

    def size_of(self, items: Any, modality: str, index: int, kwargs: Mapping[str, object]) -> int:
        """See `GridItems.size_of`."""
        if modality == "image":
            size = items.get_image_size(index)
            return self.image_tokens(size.width, size.height)
        _, metadata = items[index]
        sample: Any = kwargs.get("do_sample_frames")
        return len(self.info._get_video_second_idx(metadata, sample)) * self._frame().tokens

    def _grants(self, inputs: Any, spec: VisualSpec) -> Grants:
        grants = super()._grants(inputs, spec)
        if any(grant.budget for grant in grants.get("image", ())):
            raise BudgetError(
                "Molmo2's images are not pruned: each is seen twice, whole and in crops that cells reach across; set "
                "pruning.visual.image to null, or send the pictures as a video",
                "pruning.visual.image",
            )
        return grants

    def _positions_left(self, grants: Grants, result: Any) -> int:
        return max(1, self.rotary_table_size() - len(result["prompt_token_ids"]))

    def _replacement(self, modality: str, unpruned_replacement: Any, out_mm_kwargs: Any) -> Any:
        patch_id = self.info.get_hf_config().image_patch_id

        def replacement(index: int) -> Any:
            details = unpruned_replacement(index)
            element = out_mm_kwargs[modality][index].get(field_name(modality))
            plan = decode(element.data) if element is not None else None
            if plan is None:
                return details
            assert plan.per_frame is not None
            details.full = list(_thinned(details.full, patch_id, plan.per_frame))
            return details

        return replacement


def _thinned(tokens: Sequence[int], patch_id: int, counts: Sequence[int]) -> Iterator[int]:
    """Tokens with the first `counts[t]` patches of the t-th run of patches."""
    frame, seen = -1, 0
    before = None
    for token in tokens:
        if token == patch_id:
            if before != patch_id:
                frame, seen = frame + 1, 0
            seen += 1
        if token != patch_id or seen <= counts[frame]:
            yield token
        before = token


@MULTIMODAL_REGISTRY.register_processor(
    PruneMolmo2Processor, info=Molmo2ProcessingInfo, dummy_inputs=Molmo2DummyInputsBuilder
)
class PruneMolmo2(Molmo2ForConditionalGeneration):
    """Molmo2 with per-request budgets for videos."""

    vllm_prune_adapter: ClassVar[bool] = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        metrics.set_model_name(metrics.served_name(vllm_config.model_config))
        self._most_cells = int(vllm_config.scheduler_config.max_num_encoder_input_tokens)
        vit = getattr(self.vision_backbone, "image_vit", None)
        blocks = () if vit is None else vit.transformer.resblocks
        self._scorer = TowerScorer.of(vllm_config, [block.attention for block in blocks])
        refuse_feature_cache(vllm_config, "Molmo2")
        self._networks = networks_of(vllm_config)
        self._facts = WorkerFacts.of(vllm_config)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Encoder outputs, one per item: the marks of each frame with its cells between them."""
        kwargs.pop(field_name("image"), None)
        rows = kwargs.pop(field_name("video"), None)
        plans = [] if rows is None else [decode(row) for row in rows]
        if not any(plans):
            return super().embed_multimodal(**kwargs)
        videos = {name: kwargs.pop(name) for name in (*FLAT, *EACH)}
        outputs = list(super().embed_multimodal(**kwargs)) if "pixel_values" in kwargs else []
        for members in self._micro_batches(videos["video_num_pooled_patches"].tolist()):
            outputs += self._encode(_part(videos, members), [plans[i] for i in members])
        return tuple(outputs)

    def _micro_batches(self, cells: Sequence[int]) -> Iterator[range]:
        """Split a batch by unpruned cells: the tower's memory follows them, not the kept count."""
        first, load = 0, 0
        for i, count in enumerate(cells):
            if i > first and load + count > self._most_cells:
                yield range(first, i)
                first, load = i, 0
            load += count
        yield range(first, len(cells))

    def _encode(self, videos: dict[str, Any], plans: Sequence[ItemPlan | None]) -> list[Tensor]:
        """Outputs of a micro-batch: one call of the tower for every place to cut, and one without a cut."""
        places = [prune_point(plan, self._scorer) if plan else None for plan in plans]
        outputs: dict[int, Tensor] = {}
        for place in dict.fromkeys(places):
            members = [i for i, other in enumerate(places) if other == place]
            part, own_plans = _part(videos, members), [plans[i] for i in members]
            encoded = (
                self._encode_whole(part, own_plans)
                if place is None
                else self._encode_cut(part, place, [plan for plan in own_plans if plan is not None])
            )
            outputs |= zip(members, encoded, strict=True)
        return [outputs[i] for i in range(len(plans))]

    def _grids(self, videos: dict[str, Any]) -> list[Grid]:
        # The front end has checked that cells tile the frames.
        height, width = (n // MOLMO2_SIDE for n in self.vision_backbone.image_vit.patch_num)
        return [Grid(frames, height, width) for frames in videos["video_num_crops"].tolist()]

    def _encode_whole(self, videos: dict[str, Any], plans: Sequence[ItemPlan | None]) -> list[Tensor]:
        received = FrameAttention(self.vision_backbone, attended(plans) if "tower_attention" in needed(plans) else 0)
        with Captures({"tower_attention": received}) as captures:
            embedded = super().embed_multimodal(**videos)
        cells, patches = (videos[name].tolist() for name in ("video_num_pooled_patches", "video_num_patches"))
        pooling = joined_pooling(videos["video_token_pooling"], patches, cells)
        captured = captures.per_item(len(plans), pooling, cells)
        grids = self._grids(videos)
        return [
            rows if plan is None else self._pruned(rows, plan, grid, signals)
            for rows, plan, grid, signals in zip(embedded, plans, grids, captured, strict=True)
        ]

    def _pruned(self, rows: Tensor, plan: ItemPlan, grid: Grid, captured: Mapping[VisualSignal, Any]) -> Tensor:
        cells = rows.view(grid.frames, grid.per_frame + MARKS, -1)[:, 1:-1].flatten(0, 1)
        left = kept_rows(plan, ItemSource(grid, cells, captured, self._facts, networks=self._networks), cells)
        assert left.members is None, "several positions for a merged token; the front end should have refused it"
        origins, places = layout(left.kept, plan, grid)
        return rows[origins].index_copy_(0, places, left.rows)

    def _encode_cut(self, videos: dict[str, Any], place: PrunePoint, plans: Sequence[ItemPlan]) -> list[Tensor]:
        grids, pixels = self._grids(videos), videos["pixel_values_videos"]
        cut, kept = build_cut(place, plans, grids, self._scorer, self.vision_backbone.device)
        tower = FrameTower(self.vision_backbone, videos["video_token_pooling"][: grids[0].per_frame], self._scorer)
        thw = torch.tensor([[grid.frames, 1, pixels.shape[1]] for grid in grids])
        rows = tower.encode_cut(pixels.flatten(0, 1), thw, cut).split([plan.count for plan in plans])
        tokens = videos["video_tokens"].split(videos["num_video_tokens"].tolist())
        return [
            self._with_marks(*one) for one in zip(rows, kept, plans, grids, tokens, strict=True)
        ]  # fmt: skip

    def _with_marks(self, rows: Tensor, kept: Tensor, plan: ItemPlan, grid: Grid, tokens: Tensor) -> Tensor:
        origins, places = layout(kept, plan, grid)
        embeddings = self.get_language_model().embed_input_ids(tokens[origins])
        embeddings[places] = rows.to(embeddings.dtype)
        return embeddings


def layout(kept: Tensor, plan: ItemPlan, grid: Grid) -> tuple[Tensor, Tensor]:
    """Where the rows of a pruned video come from.

    Args:
        kept: int64 [K], ascending.
        plan: with the counts per frame, which `kept` follows.
        grid: of the video.

    Returns:
        For each embedded token, marks included, its number among the unpruned ones, int64 [K + 2T]; and which of them
        are cells, int64 [K].
    """
    assert plan.per_frame is not None
    length, device = grid.per_frame + MARKS, kept.device
    frame = kept // grid.per_frame
    places = torch.arange(len(kept), device=device) + MARKS * frame + 1
    ends = [0, *accumulate(count + MARKS for count in plan.per_frame)]
    bounds = async_tensor_h2d(ends, device=device, dtype=torch.int64)
    numbers = torch.arange(grid.frames, device=device) * length
    origins = torch.empty(ends[-1], dtype=torch.int64, device=device)
    origins[places] = kept + MARKS * frame + 1
    origins[bounds[:-1]] = numbers
    origins[bounds[1:] - 1] = numbers + length - 1
    return origins, places


def _part(videos: dict[str, Any], members: Sequence[int]) -> dict[str, Any]:
    """Some videos of a batch, in ascending order."""
    part = {name: videos[name][list(members)] for name in EACH}
    for name, counts in FLAT.items():
        pieces = videos[name].split(videos[counts].tolist())
        part[name] = videos[name] if len(members) == len(pieces) else torch.cat([pieces[i] for i in members])
    return part
