"""What all model adapters share: encode in micro-batches, select, and place kept tokens where they stood.

An adapter is a subclass of a vLLM model. Requests that do not prune take the parent's path unchanged:
same encoder batch, same embeddings, same positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from vllm.utils.torch_utils import async_tensor_h2d

from ...grid import MODALITIES, Grid
from ...signals import VisualSignal
from ...telemetry import metrics
from ..item_plan import ItemPlan, decode, field_name, plan_of
from ..tower.encoder_graphs import EncoderGraphs
from ..tower.feature_cache import Encoded
from ..tower.key_bias import biased_attention
from ..tower.obstacles import cut_obstacles, takes_no_cut
from ..tower.projector import ProjectorSensitivity
from ..tower.received_attention import Listener, TowerAttention
from ..tower.scored_cut import TowerScorer
from ..tower.select import Left, PrunePoint, build_cut, kept_rows, prune_point
from ..tower.signals import Captures, ItemSource, attended, needed
from .placing import PlacedModel
from .positions import COLUMNS, Run, attach, grid_positions, lay_out, slots_of

CPU_PATCHES = 4096
"""Patches that a CPU's tower takes at once: more make it no faster, and every tensor of more than 32 MiB comes in pages
that the kernel fills with zeros first."""


class PrunedModel(PlacedModel, EncoderGraphs):
    """Mixin placed before a vLLM vision-language model.

    Subclasses say how wide the model's own encoder output is, where its features end, and how its
    positions run.

    Attributes:
        feature_width: columns of an encoder output that hold the features a strategy looks at.
        output_width: columns of an encoder output.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        metrics.set_model_name(metrics.served_name(vllm_config.model_config))
        merge = self.config.vision_config.spatial_merge_size  # type: ignore[attr-defined]
        self._merge = int(merge)
        self._micro_batch_patches = patches_at_once(vllm_config, self._merge**2)
        blocks = getattr(self.visual, "blocks", ())
        self._scorer = TowerScorer.of(vllm_config, [block.attn for block in blocks])
        self.takes_cuts = not (takes_no_cut(vllm_config) or any(cut_obstacles(vllm_config)))
        self.prepare(vllm_config)

    @property
    def feature_width(self) -> int:
        """Leading columns of the encoder output that describe the cell."""
        return self.output_width

    def frame_step(self, modality: str, kwargs: dict[str, Any], index: int) -> float:
        """Temporal positions per frame of item `index`; 0 where frames share a temporal position."""
        raise NotImplementedError

    def runs_of(self, feature: Any, input_tokens: list[int]) -> list[Run]:
        """Media runs of one item, see `Run`. `feature` is vLLM's feature spec of the item."""
        raise NotImplementedError

    def tower_attention_blocks(self) -> Sequence[Any]:
        """Attention modules of the tower whose received attention may be captured, last first."""
        raise NotImplementedError

    def listeners(self, plans: Sequence[ItemPlan | None]) -> dict[VisualSignal, Listener]:
        """What captures signals while the tower runs; a listener that is not needed is idle."""
        needs = needed(plans)
        return {
            "tower_attention": TowerAttention(self, attended(plans) if "tower_attention" in needs else 0),
            "projector": ProjectorSensitivity(self, enabled="projector" in needs),
        }

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Encoder outputs, one per item; pruned items come as [K, output_width + 6] or wider, see `attach`."""
        rows = {m: kwargs.pop(field_name(m), None) for m in MODALITIES}
        plans = {m: [decode(row) for row in rows[m]] for m in MODALITIES if rows[m] is not None}
        if not any(plan for items in plans.values() for plan in items):
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        outputs: list[Tensor] = []
        for modality in (m for m in MODALITIES if f"{m}_grid_thw" in kwargs):
            for part, first, last in self._micro_batches(kwargs, modality):
                outputs += self._encode(part, modality, plans[modality][first:last])
        return tuple(outputs)

    def _encode(self, kwargs: dict[str, Any], modality: str, plans: Sequence[ItemPlan | None]) -> list[Tensor]:
        """Outputs of a micro-batch: one call of the tower for every place to cut, and one without a cut."""
        pixels = kwargs.get("pixel_values" if modality == "image" else "pixel_values_videos")
        # Precomputed embeddings have the tower behind them.
        cuts = [prune_point(plan, self._scorer) if plan and pixels is not None else None for plan in plans]
        if not any(cut is not None for cut in cuts):
            return self._encode_whole(kwargs, modality, plans)
        outputs: dict[int, Tensor] = {}
        # Dense items, and items cut elsewhere or by other signals, take a pass of their own.
        for cut in dict.fromkeys(cuts):
            members = [i for i, other in enumerate(cuts) if other == cut]
            part, own_plans = self._subset(kwargs, modality, members), [plans[i] for i in members]
            encoded = (
                self._encode_whole(part, modality, own_plans)
                if cut is None
                else self._encode_cut(part, modality, cut, [plan for plan in own_plans if plan is not None])
            )
            outputs |= zip(members, encoded, strict=True)
        return [outputs[i] for i in range(len(plans))]

    def _encode_cut(
        self, kwargs: dict[str, Any], modality: str, place: PrunePoint, plans: Sequence[ItemPlan]
    ) -> list[Tensor]:
        thw = kwargs[f"{modality}_grid_thw"]
        grids, counts = [self._grid(thw[i]) for i in range(len(plans))], [plan.count for plan in plans]
        cut, kept = build_cut(place, plans, grids, self._scorer, self.visual.device)
        pixels = kwargs["pixel_values" if modality == "image" else "pixel_values_videos"]
        rows = self.encode_cut(pixels, thw, cut).split(counts)
        left = [Left(part, cells) for part, cells in zip(rows, kept, strict=True)]
        return [self._place(left[i], grids[i], kwargs, modality, i) for i in range(len(plans))]

    def biased(self, number: int, bias: Tensor) -> AbstractContextManager[None]:
        """See `TowerCut.biased`."""
        assert self._scorer is not None
        return biased_attention(self.visual.blocks[number].attn, self._scorer.wide, bias)

    def _encode_whole(self, kwargs: dict[str, Any], modality: str, plans: Sequence[ItemPlan | None]) -> list[Tensor]:
        run = partial(self._run_tower, kwargs, modality, plans)
        encoded = self._features.encode(plans, run)
        return [
            item.rows if plan is None else self._prune(item.rows, plan, kwargs, modality, i, item.captured)
            for i, (item, plan) in enumerate(zip(encoded, plans, strict=True))
        ]

    def _run_tower(
        self, kwargs: dict[str, Any], modality: str, plans: Sequence[ItemPlan | None], members: Sequence[int]
    ) -> list[Encoded]:
        part = kwargs if len(members) == len(plans) else self._subset(kwargs, modality, members)
        with Captures(self.listeners([plans[i] for i in members])) as captures:
            embeddings = super().embed_multimodal(**part)  # type: ignore[misc]
        captured = captures.per_item(len(members), part[f"{modality}_grid_thw"])
        return [Encoded(*item) for item in zip(embeddings, captured, strict=True)]

    def _prune(
        self, embedding: Tensor, plan: ItemPlan, kwargs: dict[str, Any], modality: str, index: int, captured: Any
    ) -> Tensor:
        grid = self._grid(kwargs[f"{modality}_grid_thw"][index])
        text = self.embedded_text(plan, embedding.device)
        source = ItemSource(grid, embedding[:, : self.feature_width], captured, self._facts, text, self._networks)
        return self._place(kept_rows(plan, source, embedding), grid, kwargs, modality, index)

    def _grid(self, thw: Any) -> Grid:
        # A tensor from the runner, a list from vLLM's encoder-graph manager; on the CPU either way.
        frames, height, width = (int(n) for n in thw)
        return Grid(frames, height // self._merge, width // self._merge)

    def _place(self, left: Left, grid: Grid, kwargs: dict[str, Any], modality: str, index: int) -> Tensor:
        """Rows of kept cells with their coordinates."""
        relative = grid_positions(grid.frames, grid.rows, grid.cols, self.frame_step(modality, kwargs, index))
        relative = async_tensor_h2d(relative, device=left.rows.device)
        return attach(left.rows, *left.placed(relative))

    def _micro_batches(self, kwargs: dict[str, Any], modality: str) -> Iterator[tuple[dict[str, Any], int, int]]:
        """Split a batch by raw patches: the tower's memory follows them, not the kept count."""
        patches = kwargs[f"{modality}_grid_thw"].prod(-1).tolist()
        first, load = 0, 0
        for i, count in enumerate(patches):
            if i > first and load + count > self._micro_batch_patches:
                yield self._subset(kwargs, modality, range(first, i)), first, i
                first, load = i, 0
            load += count
        yield self._subset(kwargs, modality, range(first, len(patches))), first, len(patches)

    def _subset(self, kwargs: dict[str, Any], modality: str, members: Sequence[int]) -> dict[str, Any]:
        """Some items of a batch, in ascending order; neighbours are not copied."""
        ends = [0, *accumulate(kwargs[f"{modality}_grid_thw"].prod(-1).tolist())]
        part: dict[str, Any] = {}
        for key, value in kwargs.items():
            if key in ("pixel_values", "pixel_values_videos"):
                if (key == "pixel_values") == (modality == "image"):
                    part[key] = _pieces(value, ends, members)
            elif key in ("image_embeds", "video_embeds"):
                if key.startswith(modality):
                    part[key] = _pieces(value, [end // self._merge**2 for end in ends], members)
            elif key.startswith(modality) or (modality == "video" and key in ("second_per_grid_ts", "timestamps")):
                # Tensors and lists alike, one entry per item.
                part[key] = value[list(members)] if isinstance(value, Tensor) else [value[i] for i in members]
        return part

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions of a prompt; the parent's own where nothing is pruned."""
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        if not any(plan_of(feature.data, feature.modality) for feature in features):
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        return lay_out(len(input_tokens), [run for feature in features for run in self.runs_of(feature, input_tokens)])


def patches_at_once(vllm_config: Any, per_cell: int) -> int:
    """Most patches in a call of the tower for several items; one item is never split.

    Args:
        vllm_config: vLLM's configuration. Its scheduler counts kept tokens, so its batches may be many times as large.
        per_cell: patches of a visual token.
    """
    most = int(vllm_config.scheduler_config.max_num_encoder_input_tokens) * per_cell
    return min(most, CPU_PATCHES) if vllm_config.device_config.device_type == "cpu" else most


def _pieces(rows: Tensor, ends: Sequence[int], members: Sequence[int]) -> Tensor:
    """Rows of some items, of which item i has those up to `ends[i + 1]`."""
    if members[-1] - members[0] + 1 == len(members):
        return rows[ends[members[0]] : ends[members[-1] + 1]]
    return torch.cat([rows[ends[i] : ends[i + 1]] for i in members])


__all__ = ["COLUMNS", "PrunedModel", "Run", "slots_of"]
