"""Training with pruning on (STTS, arXiv 2603.18004, sections 3 and 4), for transformers' Qwen2.5-VL.

The forward pass drops cells for good, as serving does. The kept set has no gradient; the language model's loss reaches
the scorer through the bias that the scores put on one block's keys. Change over time, which that loss does not
see, is taught by an auxiliary loss. Serving runs the same scorer by other code (vllm_prune/visual/models).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, linear, pad, scaled_dot_product_attention

from ....catalogue import VISUAL
from ....grid import Grid
from ...strategies.base import Context
from .model import Scorer, key_bias

Mode = Literal["scorer", "joint"]
Pick = Callable[[Tensor, Sequence[Grid], Sequence[int]], Tensor]
"""From scores, grids and K of each item to the kept cells of the batch."""

RATES = {"language": 1e-5, "tower": 5e-6, "projector": 5e-6, "scorer": 1e-4}
"""Learning rates of the paper."""


@dataclass
class Pruned:
    """What the tower gives for a batch.

    Attributes:
        features: [sum of K, D of the language model], kept cells in raster order, item by item.
        kept: int64 [sum of K], their numbers in the batch.
        scores: float32 [sum of M].
        cells: [sum of M, U, width], what the scorer looked at.
    """

    features: Tensor
    kept: Tensor
    scores: Tensor
    cells: Tensor


class PrunedTower:
    """The vision tower of transformers' Qwen2.5-VL with the scorer, its bias and the cut inside.

    Args:
        visual: `model.model.visual`.
        scorer: float32.
        detach: whether the bias is without gradient, so that only the auxiliary loss teaches (an ablation).
        even: whether the bias of each item gets a gradient of the same size (L1 norm 1 / items). A frozen model that
            answers with certainty has next to none, and what little there is drowns beside the auxiliary loss.
    """

    def __init__(self, visual: Any, scorer: Scorer, detach: bool = False, even: bool = False) -> None:
        self.visual, self.scorer, self.detach, self.even = visual, scorer, detach, even

    def __call__(
        self,
        patches: Tensor,
        thw: Tensor,
        counts: Sequence[int],
        pick: Pick | None = None,
        frozen: bool = True,
    ) -> Pruned:
        """Encode and cut.

        Args:
            patches: [patches, values], all items one after the other, as the processor gives them.
            thw: int64 [items, 3], grids in patches.
            counts: K of each item.
            pick: chooses cells in place of `choose`, for comparisons.
            frozen: whether blocks in front of the scorer are without gradient.
        """
        unit = int(self.visual.spatial_merge_unit)
        grids = grids_of(thw, int(self.visual.spatial_merge_size))
        layout = _Layout.of(self.visual, thw)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            hidden = self._start(patches, layout)
            hidden = self._blocks(hidden, range(self.scorer.shape.after), layout)
        cells = hidden.view(len(hidden) // unit, unit, -1)[layout.raster]
        scores = self._scores(cells, grids)
        bias, biased = self._bias(scores, grids), self.scorer.shape.after
        on_keys = bias[layout.window].repeat_interleave(unit)
        hidden = self._blocks(hidden, range(biased, biased + 1), layout, on_keys)
        kept = (pick or choose)(scores.detach(), grids, counts)
        places, order = layout.raster[kept].sort()
        hidden = hidden.view(len(layout.raster), unit, -1)[places].flatten(0, 1)
        hidden = self._blocks(hidden, range(biased + 1, len(self.visual.blocks)), layout.cut(places, unit))
        merged = self.visual.merger(hidden)
        return Pruned(torch.empty_like(merged).index_copy(0, order, merged), kept, scores, cells)

    def _bias(self, scores: Tensor, grids: Sequence[Grid]) -> Tensor:
        bias = key_bias(scores, grids, self.scorer.shape.rescale)
        if self.detach:
            return bias.detach()
        if self.even and bias.requires_grad:
            bias.register_hook(partial(_evened, [grid.tokens for grid in grids]))
        return bias

    def _scores(self, cells: Tensor, grids: Sequence[Grid]) -> Tensor:
        with torch.autocast(cells.device.type, enabled=False):
            return self.scorer.score(self.scorer.pool(cells), grids)

    def _start(self, patches: Tensor, layout: _Layout) -> Tensor:
        # Kernel and stride are the patch itself, so the convolution is one product.
        hidden = linear(patches, self.visual.patch_embed.proj.weight.flatten(1))
        unit = int(self.visual.spatial_merge_unit)
        return hidden.view(len(layout.window), unit, -1)[layout.window].flatten(0, 1)

    def _blocks(self, hidden: Tensor, numbers: range, layout: _Layout, bias: Tensor | None = None) -> Tensor:
        for number in numbers:
            block = self.visual.blocks[number]
            offsets = layout.full if number in self.visual.fullatt_block_indexes else layout.windows
            hidden = hidden + attend(block.attn, block.norm1(hidden), offsets, layout.rotary, bias)
            hidden = hidden + block.mlp(block.norm2(hidden))
        return hidden


def _evened(sizes: Sequence[int], gradient: Tensor) -> Tensor:
    parts = gradient.split(list(sizes))
    return torch.cat([part / part.abs().sum().clamp_min(torch.finfo(part.dtype).tiny) for part in parts]) / len(parts)


@dataclass
class _Layout:
    """How the tower orders a batch: raster to window order and back, rotary tables, ends of frames and windows."""

    window: Tensor
    raster: Tensor
    rotary: tuple[Tensor, Tensor]
    full: list[int]
    windows: list[int]

    @classmethod
    def of(cls, visual: Any, thw: Tensor) -> _Layout:
        from transformers.vision_utils import (
            get_vision_position_ids,
            get_vision_window_index,
        )

        merge, unit = int(visual.spatial_merge_size), int(visual.spatial_merge_unit)
        positions = get_vision_position_ids(thw, merge)
        window, ends = get_vision_window_index(
            thw, spatial_merge_size=merge, window_size=visual.window_size, patch_size=visual.patch_size
        )
        tables = visual.rotary_pos_emb(torch.empty(0, device=thw.device), positions)
        ordered = [table.view(len(window), unit, -1)[window].flatten(0, 1) for table in tables]
        frames = [height * width for t, height, width in thw.tolist() for _ in range(t)]
        full = [0, *accumulate(frames)]
        return cls(window, window.argsort(), (ordered[0], ordered[1]), full, list(dict.fromkeys(ends.tolist())))

    def cut(self, places: Tensor, unit: int) -> _Layout:
        """What is left for survivors at ascending places of the window order."""
        alive = torch.zeros(len(self.raster), dtype=torch.int64).index_fill(0, places.cpu(), 1)
        before = (pad(alive.cumsum(0), (1, 0)) * unit).tolist()
        rotary = [table.view(len(self.raster), unit, -1)[places].flatten(0, 1) for table in self.rotary]
        full, windows = ([before[end // unit] for end in ends] for ends in (self.full, self.windows))
        return _Layout(self.window, self.raster, (rotary[0], rotary[1]), full, windows)


def attend(
    attention: Any, hidden: Tensor, offsets: Sequence[int], rotary: tuple[Tensor, Tensor], bias: Tensor | None = None
) -> Tensor:
    """A tower attention module over sequences between offsets, with a bias per key; sequences of one length together.

    Args:
        attention: transformers' `Qwen2_5_VLVisionAttention`.
        hidden: [patches, width], normalised.
        offsets: cumulative lengths from 0; empty sequences are fine.
        rotary: cosine and sine, [patches, head size] each.
        bias: [patches], added to the logits of each key.
    """
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    query, key, value = attention.qkv(hidden).view(len(hidden), 3, attention.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
    packed = torch.stack([query.to(value.dtype), key.to(value.dtype), value], dim=1)
    starts: dict[int, list[int]] = {}
    for start, end in pairwise(offsets):
        if end > start:
            starts.setdefault(end - start, []).append(start)
    parts, places = [], []
    for length, positions in starts.items():
        index = torch.tensor(positions, device=hidden.device)[:, None] + torch.arange(length, device=hidden.device)
        q, k, v = packed[index].permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if bias is None else bias[index][:, None, None].to(q.dtype)
        parts.append(scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(index.numel(), -1))
        places.append(index.flatten())
    return attention.proj(torch.cat(parts)[torch.cat(places).argsort()])


def grids_of(thw: Tensor, merge: int) -> list[Grid]:
    """Cells of items from their patches, int64 [items, 3]."""
    return [Grid(t, height // merge, width // merge) for t, height, width in thw.tolist()]


def choose(scores: Tensor, grids: Sequence[Grid], counts: Sequence[int]) -> Tensor:
    """The cells that strategy `stts` keeps of a batch, int64 [sum of K], ascending."""
    strategy, starts = VISUAL.create("stts"), accumulate((grid.tokens for grid in grids), initial=0)
    items = zip(scores.split([grid.tokens for grid in grids]), grids, counts, starts, strict=False)
    return torch.cat(
        [
            strategy.select(part[:, None], grid, count, Context(scores=part)) + start
            for part, grid, count, start in items
        ]
    )


def pruned_logits(
    model: Any, pruned: Pruned, tokens: Tensor, positions: Tensor, visual: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits of a batch whose items all keep the same number of cells, at unchanged positions.

    Args:
        model: transformers' Qwen2.5-VL.
        pruned: what the tower returned, one item per prompt.
        tokens: int64 [B, L], one placeholder per cell before the cut.
        positions: int64 [3, B, L].
        visual: bool [B, L], the placeholders.
        labels: int64 [B, L].

    Returns:
        logits [B, L', V] and labels int64 [B, L'] of the places that stay.
    """
    alive = torch.zeros(int(visual.sum()), dtype=torch.bool, device=visual.device)
    alive[pruned.kept] = True
    stay = torch.ones_like(visual).masked_scatter(visual, alive)
    places = stay.nonzero()[:, 1].view(len(tokens), -1)
    embedded = model.get_input_embeddings()(tokens.gather(1, places))
    embedded = embedded.masked_scatter(visual.gather(1, places)[..., None], pruned.features.to(embedded.dtype))
    hidden = model.model.language_model(
        inputs_embeds=embedded,
        position_ids=positions.gather(2, places.expand(3, -1, -1)),
        # Without a mask transformers takes the constant time of an image for a border of packed sequences.
        attention_mask=torch.ones_like(places),
        use_cache=False,
    )
    return model.lm_head(hidden.last_hidden_state), labels.gather(1, places)


def temporal_loss(scores: Tensor, cells: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Mean over the cells of later frames of (s - (1 - cos))^2 (section 3, auxiliary loss); 0 without such cells.

    The paper adds half of it to the answer's loss.

    The cosine is that of all patches of a cell, one after the other, and those of the same cell one frame earlier.

    Args:
        scores: float32 [sum of M].
        cells: [sum of M, U, width], what the scorer looked at; no gradient goes there.
        grids: the items.
    """
    sizes = [grid.tokens for grid in grids]
    terms = []
    features = cells.detach().float().flatten(1)
    for part, rows, grid in zip(scores.split(sizes), features.split(sizes), grids, strict=True):
        change = 1 - cosine_similarity(rows[: -grid.per_frame], rows[grid.per_frame :], dim=1)
        terms.append((part[grid.per_frame :] - change).square())
    errors = torch.cat(terms)
    return errors.mean() if errors.numel() else scores.sum() * 0


def parameter_groups(model: Any, scorer: Scorer, mode: Mode, scale: float = 1.0) -> list[dict[str, Any]]:
    """Groups for an optimiser, named, at the paper's learning rates times `scale`.

    Args:
        model: transformers' Qwen2.5-VL; its parameters lose their gradient with mode "scorer".
        scorer: trained in both modes.
        mode: "joint" trains everything, as the paper does; "scorer" leaves the model as it is.
        scale: one factor for all rates.
    """
    joint = mode == "joint"
    model.requires_grad_(joint)
    parts = {"scorer": list(scorer.parameters())}
    if joint:
        merger = list(model.model.visual.merger.parameters())
        known = {id(parameter) for parameter in merger}
        parts["projector"] = merger
        parts["tower"] = [p for p in model.model.visual.parameters() if id(p) not in known]
        known |= {id(parameter) for parameter in parts["tower"]}
        parts["language"] = [p for p in model.parameters() if id(p) not in known]
    return [{"params": weights, "lr": RATES[name] * scale, "name": name} for name, weights in parts.items()]
