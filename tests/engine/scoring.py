"""An oracle for STTS: transformers' whole tower with one biased block, and cut cells hidden as keys behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.visual.frontend.frame_split import frame_counts
from vllm_prune.visual.scorers.stts.model import Scorer, key_bias, lone_frames
from vllm_prune.visual.strategies.base import Context

from .cutting import hidden_keys, inputs_of
from .oracle import Item, Oracle


class SttsOracle(Oracle):
    """Answers as a request must be answered whose cells a scorer chooses."""

    def __init__(self, path: Path, scorer: Scorer) -> None:
        super().__init__(path)
        self.scorer = scorer

    def choose(
        self, item: Item, name: str, count: int, options: dict[str, Any] | None, earlier: Sequence[Item]
    ) -> Tensor:
        """Kept cells; the item's features and deepstack levels become those of the tower with the bias and the cut."""
        shape, visual, grid = self.scorer.shape, self.hf.model.visual, item.grid
        thw = torch.tensor([[grid.frames, 2 * grid.rows, 2 * grid.cols]])
        hidden, order = inputs_of(visual, shape.after, lambda: self.tower(item.patches, thw))
        cells = hidden.view(grid.tokens, 4, -1)
        raster = torch.empty_like(cells).index_copy(0, order, cells)
        scores = self.scorer.score(self.scorer.pool(raster), [grid])
        per_frame = None
        if self.qwen3 and item.modality == "video":
            per_frame = frame_counts(count, grid, item.patches, VISUAL.strategy_class(name).frame_split)
        kept = VISUAL.create(name, options).select(scores[:, None], grid, count, Context(scores=scores), per_frame)
        alive = torch.zeros(grid.frames, grid.per_frame, dtype=torch.bool)
        alive.view(-1)[kept] = True
        if shape.refill == "ffd" and grid.frames > 1:
            alive[lone_frames(alive.sum(1).tolist(), grid.per_frame)] = True
        bias = key_bias(scores, [grid], shape.rescale)[order].repeat_interleave(4)
        with hidden_keys(visual, shape.after + 1, alive.flatten()[order].repeat_interleave(4), bias):
            item.features, item.deepstack = self.tower(item.patches, thw)
        return kept
