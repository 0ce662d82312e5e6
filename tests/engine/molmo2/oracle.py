"""What a pruned Molmo2 request must answer, in plain torch from the checkpoint's own weights.

No row is dropped in the tower, packed or counted anew: cut cells are hidden as keys. The language model is causal here,
as on the CPU backend; its bidirectional ranges are compared with vLLM's by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import gelu, interpolate, layer_norm, linear, rms_norm, silu
from transformers import Qwen2TokenizerFast

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.frontend.frame_split import frame_counts
from vllm_prune.visual.frontend.item_cache import CHANNELS
from vllm_prune.visual.scorers.stts import files
from vllm_prune.visual.scorers.stts.model import key_bias
from vllm_prune.visual.strategies.base import Context, PixelStrategy
from vllm_prune.visual.strategies.maths import cells_of

from ..media import Request
from ..oracle import Answer, greedy
from .checkpoint import ADAPTER, TEXT, VIT
from .remote import COLS, ROWS, SIDE, patches, tiles

CELLS, PATCHES = ROWS * COLS, ROWS * COLS * SIDE**2


class Oracle:
    """Tower, connector and language model of the tiny checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.weights = load_file(folder / "model.safetensors")
        self.tokenizer: Any = Qwen2TokenizerFast.from_pretrained(folder)
        self.scorer = files.load(folder / files.PLACE)

    @torch.no_grad()
    def answer(self, request: Request, steps: int) -> tuple[Answer, list[int]]:
        """Expected answer of a request with one video, and the count of each frame."""
        [(frames, about)] = request.videos
        pixels, grid = patches(frames), Grid(len(frames), ROWS, COLS)
        features, kept = self.cells(pixels, grid, request.visual)
        counts = torch.bincount(kept // CELLS, minlength=grid.frames).tolist()
        ids = self.prompt(request.prompt, [i / about["fps"] for i in about["frames_indices"]], counts)
        rows = self._embedding(torch.tensor(ids))
        rows[torch.tensor(ids) == self.token("<im_patch>")] = features
        return self._decode(ids, rows, steps), counts

    def prompt(self, text: str, times: list[float], counts: list[int]) -> list[int]:
        """Token ids: a time, a start, the kept cells and an end per frame."""
        video = ""
        for i, (time, count) in enumerate(zip(times, counts, strict=True)):
            video += f"{' ' if i else ''}{time:.1f} <frame_start>{'<im_patch>' * count}<frame_end>"
        return [self.tokenizer.eos_token_id, *self.tokenizer(text.replace("<|video|>", video)).input_ids]

    def cells(self, pixels: Tensor, grid: Grid, visual: dict[str, Any] | None) -> tuple[Tensor, Tensor]:
        """Features and numbers of the kept cells."""
        index = torch.cat([tiles(t * PATCHES) for t in range(grid.frames)])
        if visual is None:
            return self._tower(pixels, index), torch.arange(grid.tokens)
        name, options = visual["strategy"], visual.get("options") or {}
        count = visual.get("max_tokens") or max(1, math.floor(visual["keep"] * grid.tokens))
        split = frame_counts(count, grid, pixels.flatten(0, 1), VISUAL.strategy_class(name).frame_split)
        strategy = VISUAL.create(name, options)
        if isinstance(strategy, PixelStrategy):
            rows = pixels.flatten(0, 1)[index].view(grid.tokens, SIDE**2, -1, CHANNELS).transpose(2, 3)
            kept = strategy.select_cells(
                cells_of(rows.reshape(grid.tokens, -1), SIDE**2, CHANNELS), grid, count, [], split
            )
            return self._tower(pixels, index)[kept], kept
        if "scorer" in strategy.needs:
            after = self.scorer.shape.after
            scores = self.scorer.score(self.scorer.pool(self._until(pixels, after)[index]), [grid])
            bias = torch.empty(len(pixels) * PATCHES)
            bias[index] = key_bias(scores, [grid])[:, None].expand(-1, SIDE**2)
            kept = strategy.select(scores[:, None], grid, count, Context(scores=scores), split)
            return self._tower(pixels, index, kept, after + 1, (after, bias))[kept], kept
        if options.get("where") == "tower":
            looked = self._until(pixels, options["after"])[index].mean(1)
            kept = strategy.select(looked, grid, count, Context(), split)
            return self._tower(pixels, index, kept, options["after"])[kept], kept
        signals = (
            {"tower_attention": self._received(pixels)[index].mean(1)} if "tower_attention" in strategy.needs else {}
        )
        features = self._tower(pixels, index)
        kept = strategy.select(features, grid, count, Context(**signals), split)
        return features[kept], kept

    def token(self, token: str) -> int:
        """Id of a special token."""
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def _w(self, name: str) -> tuple[Tensor, Tensor | None]:
        return self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")

    def _start(self, pixels: Tensor) -> Tensor:
        vit = "model.vision_backbone.image_vit."
        side = math.isqrt(VIT["image_num_pos"])
        table = self.weights[f"{vit}positional_embedding"].view(1, side, side, -1).permute(0, 3, 1, 2)
        size = (ROWS * SIDE, COLS * SIDE)
        table = interpolate(table, size, mode="bicubic", align_corners=False, antialias=True).flatten(2).mT
        return (linear(pixels, *self._w(f"{vit}patch_embedding")) + table).flatten(0, 1)

    def _block(self, i: int, rows: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Output of a block, and its attention, [heads, patches, patches]; `bias` is added per key."""
        block, heads = f"model.vision_backbone.image_vit.transformer.resblocks.{i}.", VIT["num_attention_heads"]
        normed = layer_norm(rows, rows.shape[1:], *self._w(f"{block}attention_norm"), eps=VIT["layer_norm_eps"])
        query, key, value = (
            linear(normed, *self._w(f"{block}attention.{name}")).unflatten(1, (heads, -1))
            for name in ("wq", "wk", "wv")
        )
        frame = torch.arange(len(rows)) // PATCHES
        logits = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(VIT["head_dim"]) + bias
        attention = logits.masked_fill(frame[:, None] != frame, -torch.inf).softmax(-1).nan_to_num()
        rows = rows + linear(
            torch.einsum("hqk,khd->qhd", attention, value).flatten(1), *self._w(f"{block}attention.wo")
        )
        normed = layer_norm(rows, rows.shape[1:], *self._w(f"{block}ffn_norm"), eps=VIT["layer_norm_eps"])
        inner = gelu(linear(normed, *self._w(f"{block}feed_forward.w1")), approximate="tanh")
        return rows + linear(inner, *self._w(f"{block}feed_forward.w2")), attention

    def _until(self, pixels: Tensor, after: int) -> Tensor:
        rows = self._start(pixels)
        for i in range(after):
            rows, _ = self._block(i, rows, torch.zeros(len(rows)))
        return rows

    def _received(self, pixels: Tensor) -> Tensor:
        """Attention per patch in the last block; frames are small enough for all queries to be in the sample."""
        last = VIT["num_hidden_layers"] - 2
        _, attention = self._block(last, self._until(pixels, last), torch.zeros(len(pixels) * PATCHES))
        count = min(64, PATCHES)
        asked = ((2 * torch.arange(count) + 1) * PATCHES) // (2 * count)
        sample = (torch.arange(len(pixels))[:, None] * PATCHES + asked).flatten()
        return attention[:, sample].sum((0, 1)) / (VIT["num_attention_heads"] * count)

    def _tower(
        self,
        pixels: Tensor,
        index: Tensor,
        kept: Tensor | None = None,
        cut: int = 0,
        biased: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """Features of all cells; from block `cut` on only the kept ones are seen."""
        rows, outputs = self._start(pixels), {}
        hidden = torch.zeros(len(rows))
        if kept is not None:
            hidden[:] = -torch.inf
            hidden[index[kept].flatten()] = 0
        for i in range(VIT["num_hidden_layers"] - 1):
            bias = hidden if kept is not None and i >= cut else torch.zeros(len(rows))
            rows, _ = self._block(i, rows, biased[1] if biased and biased[0] == i else bias)
            outputs[i] = rows
        taps = [outputs[layer + VIT["num_hidden_layers"]] for layer in ADAPTER["vit_layers"]]
        return self._connect(torch.cat(taps, 1)[index])

    def _connect(self, cells: Tensor) -> Tensor:
        pool, project = "model.vision_backbone.image_pooling_2d.", "model.vision_backbone.image_projector."
        heads = ADAPTER["num_attention_heads"]
        query = linear(cells.mean(1), *self._w(pool + "wq")).unflatten(-1, (heads, -1))
        key, value = (linear(cells, *self._w(pool + name)).unflatten(-1, (heads, -1)) for name in ("wk", "wv"))
        weights = (torch.einsum("chd,cghd->chg", query, key) / math.sqrt(ADAPTER["head_dim"])).softmax(-1)
        found = linear(torch.einsum("chg,cghd->chd", weights, value).flatten(1), *self._w(pool + "wo"))
        gate, up, down = (self.weights[f"{project}{name}.weight"] for name in ("w1", "w3", "w2"))
        return (silu(found @ gate.mT) * (found @ up.mT)) @ down.mT

    def _embedding(self, ids: Tensor) -> Tensor:
        table = torch.cat([self.weights[f"model.transformer.wte.{name}"] for name in ("embedding", "new_embedding")])
        return table[ids]

    def _decode(self, ids: list[int], rows: Tensor, steps: int) -> Answer:
        def scores_behind(tokens: Sequence[int]) -> Tensor:
            seen = torch.cat([rows, self._embedding(torch.tensor(tokens))]) if tokens else rows
            return self._language(seen)[-1] @ self.weights["lm_head.weight"].mT

        return Answer(tuple(ids), *greedy(steps, scores_behind))

    def _language(self, rows: Tensor) -> Tensor:
        size, eps = TEXT["head_dim"], TEXT["layer_norm_eps"]
        heads, groups = TEXT["num_attention_heads"], TEXT["num_key_value_heads"]
        causal = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
        # Positions of the shortened prompt.
        angles = torch.outer(torch.arange(len(rows)), TEXT["rope_theta"] ** (-torch.arange(0, size, 2) / size))
        for i in range(TEXT["num_hidden_layers"]):
            block = f"model.transformer.blocks.{i}."
            normed = rms_norm(rows, rows.shape[1:], self.weights[f"{block}attn_norm.weight"], eps)
            fused = (normed @ self.weights[f"{block}self_attn.att_proj.weight"].mT).unflatten(1, (-1, size))
            query, key, value = fused.split([heads, groups, groups], 1)
            query = _turned(rms_norm(query, (size,), self.weights[f"{block}self_attn.q_norm.weight"], eps), angles)
            key = _turned(rms_norm(key, (size,), self.weights[f"{block}self_attn.k_norm.weight"], eps), angles)
            key, value = (part.repeat_interleave(heads // groups, 1) for part in (key, value))
            logits = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(size)
            seen = logits.masked_fill(~causal, -torch.inf).softmax(-1)
            found = torch.einsum("hqk,khd->qhd", seen, value).flatten(1)
            rows = rows + found @ self.weights[f"{block}self_attn.attn_out.weight"].mT
            normed = rms_norm(rows, rows.shape[1:], self.weights[f"{block}ff_norm.weight"], eps)
            up, gate = (normed @ self.weights[f"{block}mlp.ff_proj.weight"].mT).chunk(2, -1)
            rows = rows + (up * silu(gate)) @ self.weights[f"{block}mlp.ff_out.weight"].mT
        return rms_norm(rows, rows.shape[1:], self.weights["model.transformer.ln_f.weight"], eps)


def _turned(rows: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding, half-split."""
    first, second = rows.chunk(2, -1)
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
