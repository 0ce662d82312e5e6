"""Attention received by each cell in a late tower layer, from a sample of queries.

The tower keeps its own attention kernel; only one block's queries and keys are computed a second time,
and only for items whose strategy needs them. Cost is 64 queries per frame, never the full N x N matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

QUERIES = 64
_NOTHING = torch.empty(0)


class Listener:
    """Context manager that records the inputs of modules of the tower.

    Args:
        modules: the modules, none where nothing is captured.
    """

    def __init__(self, *modules: Any) -> None:
        self._modules = modules
        self._handles: list[Any] = []
        self._received: dict[Any, list[Tensor]] = {module: [] for module in modules}

    def __enter__(self) -> Self:
        self._handles = [one.register_forward_pre_hook(self._listen, with_kwargs=True) for one in self._modules]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _listen(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise NotImplementedError

    def _joined(self) -> Tensor:
        """What all modules have received, one row for each; empty where nothing was captured."""
        parts = [torch.cat(parts) for parts in self._received.values() if parts]
        return torch.stack(parts) if parts else _NOTHING

    def per_item(self, *batch: Any) -> Sequence[Any]:
        """What was captured for each item, as `ItemSource.captured` has it, or None where nothing was."""
        raise NotImplementedError


class TowerAttention(Listener):
    """Listens to attention modules while the tower runs.

    Args:
        model: the adapter.
        blocks: how many of the last blocks that attend to whole frames are listened to; None for all.
    """

    def __init__(self, model: Any, blocks: int | None) -> None:
        super().__init__(*model.tower_attention_blocks()[:blocks])
        self._model = model

    def _listen(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["x"]
        self._received[module].append(
            received_attention(
                module, hidden, kwargs["rotary_pos_emb_cos"], kwargs["rotary_pos_emb_sin"], kwargs["cu_seqlens"]
            )
        )

    def per_item(self, grid_thw: Tensor) -> list[Tensor | None]:
        """Received attention of each item's cells, float32 [blocks, M] in raster order, or None where not captured."""
        received = self._joined()
        if not len(received):
            return [None] * len(grid_thw)
        cells = received.unflatten(1, (-1, self._model._merge**2)).mean(2)
        return [cells.T for cells in in_raster_order(self._model, cells.T, grid_thw)]


def in_raster_order(model: Any, cells: Tensor, grid_thw: Tensor) -> Sequence[Tensor]:
    """Values of a batch's cells, [sum of M, ...] in the tower's order, as [M, ...] in raster order for each item."""
    sizes = (grid_thw.prod(-1) // model._merge**2).tolist()
    if getattr(model.visual, "get_window_index_thw", None) is not None:
        # The tower works in window order; undo it for the whole batch.
        cells = cells[_raster_order(model.visual, grid_thw).to(cells.device)]
    return cells.split(sizes)


def received_attention(module: Any, hidden: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Mean attention received per patch inside its segment.

    Args:
        module: a vLLM vision attention module (fused `qkv`, head-sharded).
        hidden: [N, 1, C] input of the module.
        cos, sin: [N, head_dim / 2] rotary tables.
        cu_seqlens: [segments + 1] offsets of the segments that attend to themselves.

    Returns:
        float32 [N]; a segment's entries sum to 1.
    """
    fused, _ = module.qkv(hidden)
    heads, width = module.num_attention_heads_per_partition, module.hidden_size_per_attention_head
    query, key, _ = fused.view(len(hidden), 3, heads, width).float().unbind(1)
    query, key = rotate(query, cos.float(), sin.float()), rotate(key, cos.float(), sin.float())
    received = []
    with gpu_sync_allowed():
        bounds = cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        sample = sample_queries(end - start, hidden.device) + start
        logits = torch.einsum("qhd,khd->hqk", query[sample], key[start:end]) / width**0.5
        received.append(logits.softmax(-1).mean((0, 1)))
    return torch.cat(received)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-split layout: [N, H, d] with tables [N, d / 2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def sample_queries(length: int, device: torch.device) -> Tensor:
    """Up to `QUERIES` places spread over `length`, int64, ascending."""
    count = min(QUERIES, length)
    return ((2 * torch.arange(count, device=device) + 1) * length) // (2 * count)


def _raster_order(visual: Any, grid_thw: Tensor) -> Tensor:
    """Permutation that takes window-ordered cells of a batch back to raster order."""
    return visual.prepare_encoder_metadata(grid_thw.tolist())["reverse_indices"]
