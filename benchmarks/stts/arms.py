"""The demo model in transformers, asked about the same sample under many cuts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.frontend.item_cache import CHANNELS
from vllm_prune.visual.scorers.stts.training import Pruned, pruned_logits
from vllm_prune.visual.strategies.base import Context, PixelStrategy, Reduction
from vllm_prune.visual.strategies.maths import cells_of
from vllm_prune.visual.tower.received_attention import received_attention

from ..demo_model.batches import Batch, collate
from ..tasks import Sample

NOTHING = torch.empty(0), torch.empty(0)
TRAINED = ("stts", "vision_selector")


class Case:
    """One sample: inputs, unpruned features, and the signals that strategies look at."""

    def __init__(self, model: Any, words: Any, one: Sample, number: int) -> None:
        self.batch: Batch = collate([one], words)
        self.grid, self.seed = Grid(*one.media[0].grid), number
        self._model = model
        block = model.model.visual.blocks[max(model.model.visual.fullatt_block_indexes)].attn
        seen: list[Any] = []
        handle = block.register_forward_pre_hook(lambda *found: seen.append(found), with_kwargs=True)
        try:
            self.features: Tensor = model.model.visual(self.batch.patches, grid_thw=self.batch.grid).pooler_output
        finally:
            handle.remove()
        self._seen = seen[0]

    @property
    def attention(self) -> Tensor:
        """Attention that each cell receives in the last full block, as the engine captures it."""
        block, args, kwargs = self._seen
        hidden = args[0] if args else kwargs["hidden_states"]
        cosine, sine = (table[:, : table.shape[1] // 2] for table in kwargs["position_embeddings"])
        module = SimpleNamespace(
            qkv=lambda rows: (block.qkv(rows), None),
            num_attention_heads_per_partition=block.num_heads,
            hidden_size_per_attention_head=hidden.shape[-1] // block.num_heads,
        )
        received = received_attention(module, hidden, cosine, sine, kwargs["cu_seqlens"])
        order = raster_order(self._model.model.visual, self.batch.grid)
        return received.view(self.grid.tokens, -1).mean(1)[order]

    def choose(self, name: str, count: int, per_frame: Sequence[int] | None = None) -> Pruned | None:
        """What an untrained strategy keeps behind the tower; None where it does not handle such an item.

        Args:
            name: of the catalogue.
            count: K.
            per_frame: counts that are fixed beforehand, as for models with text between frames.
        """
        modality = "video" if self.grid.frames > 1 else "image"
        if modality not in VISUAL.strategy_class(name).modalities:
            return None
        strategy = VISUAL.create(name)
        if isinstance(strategy, PixelStrategy):
            per_cell = len(self.batch.patches) // self.grid.tokens
            cells = cells_of(self.batch.patches.reshape(self.grid.tokens, -1), per_cell, CHANNELS)
            reduction = Reduction(strategy.select_cells(cells, self.grid, count, [], per_frame))
        else:
            signals = {"tower_attention": self.attention} if "tower_attention" in strategy.needs else {}
            reduction = strategy.reduce(self.features, self.grid, count, Context(self.seed, **signals), per_frame)
        return Pruned(reduction.rows(self.features), reduction.kept, *NOTHING)

    def right(self, found: Sequence[Pruned]) -> list[bool]:
        """Whether every greedy token of the answer, its end included, is right; all cuts keep the same count."""
        b, n = self.batch, len(found)
        kept = torch.cat([one.kept + i * self.grid.tokens for i, one in enumerate(found)])
        together = Pruned(torch.cat([one.features for one in found]), kept, *NOTHING)
        logits, labels = pruned_logits(
            self._model, together, b.tokens.expand(n, -1), b.positions.expand(-1, n, -1), b.visual.expand(n, -1),
            b.labels.expand(n, -1),
        )  # fmt: skip
        return [bool(one) for one in ((logits.argmax(-1) == labels) | (labels < 0)).all(1)]


def choose_per_frame(
    per_frame: Sequence[int] | None, scores: Tensor, grids: Sequence[Grid], counts: Sequence[int]
) -> Tensor:
    """The choice of `stts` in one item whose counts per frame are fixed beforehand, as for Qwen3-VL, or free."""
    return VISUAL.create("stts", {"spread": "free"}).select(
        scores[:, None], grids[0], counts[0], Context(scores=scores), per_frame
    )


def raster_order(visual: Any, thw: Tensor) -> Tensor:
    """Places of cells in the tower's window order, int64 [M]."""
    from transformers.vision_utils import get_vision_window_index

    window, _ = get_vision_window_index(
        thw,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )
    return window.argsort()


def untrained() -> Iterator[str]:
    """Every strategy of the catalogue that needs no training and none of the signals that are not taken here."""
    elsewhere = {"any_size", "projector", "text"}
    pruning = (name for name in VISUAL.names() if name not in ("none", *TRAINED))
    yield from (name for name in pruning if not VISUAL.create(name).wanted() & elsewhere)


def load_model(checkpoint: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer."""
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return model.requires_grad_(False), AutoTokenizer.from_pretrained(checkpoint)
