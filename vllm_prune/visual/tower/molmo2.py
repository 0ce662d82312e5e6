"""Molmo2's vision backbone in the form that `TowerCut` runs: cells side by side, frames as sequences of one row.

The stock tower takes frames as a batch, in raster order, and gathers the patches of a cell when it pools. Position
embeddings are added in front of the first block, and attention does not depend on the order of patches; so here they
stand cell by cell from the start, a cut leaves whole cells out, and pooling needs no indices any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .cut import TowerCut
from .key_bias import biased_attention
from .received_attention import Listener, sample_queries
from .scored_cut import TowerScorer


class FrameTower(TowerCut):
    """The tower with the connector behind it, for items of equal frames.

    Args:
        backbone: vLLM's `Molmo2VisionBackbone`.
        pooling: int64 [cells of a frame, patches of a cell], which patches of a frame make up a cell; a partition.
        scorer: of the served model, for cuts by its scores.
    """

    def __init__(self, backbone: Any, pooling: Tensor, scorer: TowerScorer | None) -> None:
        # `TowerCut` reads these attributes of a Qwen-VL tower; this object has them for Molmo2.
        self.visual = self
        self.blocks = backbone.image_vit.transformer.resblocks
        self.spatial_merge_unit = pooling.shape[1]
        self._backbone, self._scorer = backbone, scorer
        self._order = pooling.flatten().to(backbone.device)

    def prepare_encoder_metadata(self, thw: list[list[int]]) -> dict[str, Tensor]:
        """Ends of the frames of [items, 3] frames, height and width in patches."""
        patches = len(self._order)
        frames = sum(t for t, _, _ in thw)
        ends = torch.arange(0, (frames + 1) * patches, patches, dtype=torch.int32, device=self._order.device)
        return {"cu_seqlens": ends, "max_seqlen": torch.tensor(patches, dtype=torch.int32)}

    def tower_start(self, pixels: Tensor, meta: dict[str, Any]) -> Tensor:
        """See `TowerCut.tower_start`; the tower's order is cell by cell."""
        vit, backbone = self._backbone.image_vit, self._backbone
        frames = pixels.view(-1, len(self._order), pixels.shape[-1])
        hidden = vit.patch_embedding(frames.to(device=backbone.device, dtype=backbone.dtype))
        return vit.add_pos_emb(hidden, vit.patch_num)[:, self._order].flatten(0, 1).unsqueeze(1)

    def tower_blocks(self, hidden: Tensor, numbers: range, meta: dict[str, Any], levels: dict[int, Tensor]) -> Tensor:
        """See `TowerCut.tower_blocks`; the connector takes the outputs of several blocks."""
        lengths = {name: meta[name] for name in ("cu_seqlens", "max_seqlen")}
        for number in numbers:
            with _sequences(self.blocks[number].attention, lengths):
                hidden = self.blocks[number](hidden)
            if number in self._backbone.vit_layers and number + 1 < len(self.blocks):
                levels[number] = hidden
        return hidden

    def tower_end(self, hidden: Tensor, levels: dict[int, Tensor]) -> Tensor:
        """See `TowerCut.tower_end`; features stand in the configuration's order of blocks, not in theirs."""
        last = len(self.blocks) - 1
        features = [hidden if number == last else levels[number] for number in self._backbone.vit_layers]
        cells = torch.cat(features, -1).view(-1, self.spatial_merge_unit, len(features) * hidden.shape[-1])
        pooled = self._backbone.image_pooling_2d(cells.mean(1, keepdim=True), cells)
        return self._backbone.image_projector(pooled.view(1, len(cells), -1))[0]

    def biased(self, number: int, bias: Tensor) -> AbstractContextManager[None]:
        """See `TowerCut.biased`."""
        assert self._scorer is not None
        return biased_attention(self.blocks[number].attention, self._scorer.wide, bias)


class _Sequences(nn.Module):
    """Stands in for the attention of a block, which takes batches only: splits [rows, 1, width] by lengths."""

    def __init__(self, plain: Any, size: int, lengths: dict[str, Tensor]) -> None:
        super().__init__()
        self._plain, self._size, self._lengths = plain, size, lengths

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (rows.reshape(1, len(rows), -1, self._size) for rows in (query, key, value))
        return self._plain(query=query, key=key, value=value, **self._lengths).reshape(query.shape[1], 1, -1)


@contextmanager
def _sequences(attention: Any, lengths: dict[str, Tensor]) -> Iterator[None]:
    """A block's attention over sequences of one row; outside of this context the block is vLLM's own."""
    plain = attention.attn
    attention.attn = _Sequences(plain, attention.head_dim, lengths)
    try:
        yield
    finally:
        attention.attn = plain


class FrameAttention(Listener):
    """Listens to the last blocks while the stock tower runs.

    Args:
        backbone: vLLM's `Molmo2VisionBackbone`.
        blocks: how many; None for all.
    """

    def __init__(self, backbone: Any, blocks: int | None) -> None:
        resblocks = list(backbone.image_vit.transformer.resblocks)
        super().__init__(*[block.attention for block in resblocks[::-1][:blocks]])

    def _listen(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._received[module].append(received(module, args[0]))

    def per_item(self, pooling: Tensor, cells: list[int]) -> list[Tensor | None]:
        """Attention that the cells of each item received, float32 [blocks, M], or None where not captured.

        Args:
            pooling: int64 [sum of M, patches of a cell], indices into the patches of the whole batch.
            cells: M of each item.
        """
        heard = self._joined()
        if not len(heard):
            return [None] * len(cells)
        return list(heard.flatten(1)[:, pooling].mean(2).split(cells, 1))


def received(module: Any, hidden: Tensor) -> Tensor:
    """Mean attention that each patch receives inside its frame, float32 [T, N], from a sample of queries.

    Args:
        module: vLLM's `ViTMultiHeadDotProductAttention`.
        hidden: [T, N, width], its input.
    """
    fused, _ = module.merged_qkv(hidden)
    query, key, _ = fused.split([module.q_size, module.kv_size, module.kv_size], dim=-1)
    query, key = (rows.unflatten(-1, (-1, module.head_dim)).float() for rows in (query, key))
    key = key.repeat_interleave(query.shape[2] // key.shape[2], dim=2)
    chosen = query[:, sample_queries(hidden.shape[1], hidden.device)] * module.scale
    frames = [torch.einsum("qhd,khd->hqk", q, k).softmax(-1).mean((0, 1)) for q, k in zip(chosen, key, strict=True)]
    return torch.stack(frames)


def joined_pooling(pooling: Tensor, patches: list[int], cells: list[int]) -> Tensor:
    """Pooling indices of a batch from those of its items, each of which starts at zero.

    Args:
        pooling: int64 [sum of M, patches of a cell].
        patches, cells: of each item.
    """
    starts = [sum(patches[:i]) for i in range(len(patches))]
    ends = [0, *torch.tensor(cells).cumsum(0).tolist()]
    parts = zip(starts, pairwise(ends), strict=True)
    return torch.cat([pooling[first:last] + start for start, (first, last) in parts])
