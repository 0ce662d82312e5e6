"""Cells that a trained policy expects to help the answer, and evenly spaced others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import silu

from ...grid import Grid
from ._text import text_of
from ._trained import LanguageShape, LayoutError, Network, Shapes, TrainedStrategy
from .base import Context, NoOptions, best_per_frame, places_of

_LAYER = "layers.0."
_HEADS = ("token_compress", "frame_compress")
# Differences of frames' logits are stretched to this range before their softmax.
_RANGE = 3.0


class CaCoVidOptions(NoOptions):
    """Options of `cacovid`; the defaults are those of the authors' evaluation.

    Attributes:
        policy: share of K that the policy chooses; the rest is spaced evenly over what it leaves.
        most: largest share of a frame that the policy may choose, in multiples of what it may of all frames together.
    """

    policy: Annotated[float, Field(ge=0, le=1)] = 0.5
    most: Annotated[float, Field(ge=1, le=8)] = 1.5


class CaCoVid(TrainedStrategy):
    """CaCoVID (arXiv 2602.01649, section 3): one layer over the video and the question, and two heads.

    In the layer, a copy of the language model's first one that was trained on, every token attends to every other. One
    head then rates visual tokens, the other the means of frames. Frames share what the policy may choose by the softmax
    of their ratings, and each gives its best tokens; the rest of K is spaced evenly over all others. No floor per frame
    is promised.

    The authors run the layer on the whole prompt, here it sees the visual tokens and behind them the text of the last
    user message. It has positions one after the other, as the model that it was trained for. The layer and the rule are
    by the authors' public code; their weights have not been run here.
    """

    name = "cacovid"
    paper = "CaCoVID, arXiv 2602.01649, section 3"
    summary = "half: visual tokens that a policy trained on answers picks for the question; half: evenly spaced others"
    modalities = frozenset({"video"})
    needs = frozenset({"text", "weights"})
    floor = False
    Options = CaCoVidOptions
    options: CaCoVidOptions
    anchor = "token_compress.0.weight"
    source = "moraleyc/CaCoVID_LLaVA-OneVision, for LLaVA-OneVision 7B"

    @classmethod
    def layout(cls, shapes: Shapes, language: LanguageShape) -> dict[str, tuple[int, ...]]:
        """See `TrainedStrategy.layout`; the width of the layer's MLP is open."""
        width, inner = language.width, shapes.get(f"{_LAYER}mlp.gate_proj.weight", (0,))[0]
        if width < 16:
            raise LayoutError(f"its heads need a language model of width 16 at least, and this one has {width}")
        expected = language.attention(f"{_LAYER}self_attn.")
        expected |= {f"{_LAYER}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        expected[f"{_LAYER}mlp.down_proj.weight"] = (width, inner)
        norms = (f"{_LAYER}input_layernorm", f"{_LAYER}post_attention_layernorm", "layernorm")
        expected |= {f"{name}.weight": (width,) for name in norms}
        sizes = [width, width // 2, width // 4, width // 8, width // 16, 2]
        for head in _HEADS:
            for i in range(5):
                expected[f"{head}.{2 * i}.weight"] = (sizes[i + 1], sizes[i])
                expected[f"{head}.{2 * i}.bias"] = (sizes[i + 1],)
        return expected

    def waits_for_device(self) -> bool:
        """See `Strategy.waits_for_device`."""
        return True

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """See `Strategy.select_span`."""
        ratings, frames = self._rate(tokens, grid, context)
        chosen = math.floor(self.options.policy * count)
        picks = best_per_frame(ratings, self._shares(frames.tolist(), grid, count, chosen))
        return torch.cat([picks, _spaced(picks, grid.tokens, count - chosen)])

    def select_frames(self, tokens: Tensor, grid: Grid, per_frame: Sequence[int], context: Context) -> Tensor:
        """See `Strategy.select_frames`; each frame's count is given, so frames are not weighed."""
        ratings, _ = self._rate(tokens, grid, context)
        parts = []
        for t, count in enumerate(per_frame):
            first = math.floor(self.options.policy * count)
            inside = ratings[t * grid.per_frame : (t + 1) * grid.per_frame]
            picks = best_per_frame(inside, [first])
            both = torch.cat([picks, _spaced(picks, grid.per_frame, count - first)])
            parts.append(both.sort().values + t * grid.per_frame)
        return torch.cat(parts)

    def _rate(self, tokens: Tensor, grid: Grid, context: Context) -> tuple[Tensor, Tensor]:
        """How much better it is to keep than to drop: each visual token, float32 [M], and each frame, [T]."""
        network = self.network(context)
        rows = torch.cat([tokens.float(), text_of(self.name, tokens, context)])
        seen = _layer(network, rows)[: grid.tokens]
        means = seen.view(grid.frames, grid.per_frame, -1).mean(1)
        ratings, frames = (
            _head(network, network.norm(part, "layernorm", network.language.eps), head)
            for part, head in zip((seen, means), _HEADS, strict=True)
        )
        return ratings, frames

    def _shares(self, frames: list[float], grid: Grid, count: int, chosen: int) -> list[int]:
        """Tokens that the policy chooses of each frame, `chosen` in all."""
        largest = max(abs(rating) for rating in frames) or 1.0
        powers = [math.exp(rating / largest * _RANGE) for rating in frames]
        low, high = 1 / (2 * grid.frames), self.options.most / grid.frames
        weights = [min(max(power / sum(powers), low), high) for power in powers]
        cap = int(self.options.policy * self.options.most * count / grid.frames)
        wanted = round(self.options.policy * count)
        shares = [min(max(round(weight / sum(weights) * wanted), 1), cap, grid.per_frame) for weight in weights]
        while sum(shares) > chosen:
            shares[shares.index(max(shares))] -= 1
        while sum(shares) < chosen:
            shares[shares.index(min(shares))] += 1
        return shares


def _spaced(picks: Tensor, total: int, count: int) -> Tensor:
    """`count` of the places up to `total` that are no picks, from the first to the last; int64."""
    free = torch.ones(total, dtype=torch.bool, device=picks.device).index_fill_(0, picks, False)
    left = places_of(free, total - len(picks))
    step = (len(left) - 1) / max(count - 1, 1)
    return left[(torch.arange(count, device=picks.device, dtype=torch.float64) * step).round().long()]


def _layer(network: Network, rows: Tensor) -> Tensor:
    """Qwen2's decoder layer without its mask; float32 [n, D]."""
    attention, eps = f"{_LAYER}self_attn.", network.language.eps
    seen = network.norm(rows, f"{_LAYER}input_layernorm", eps)
    queries, keys = (
        _rotated(part, network.language) for part in (network.queries(seen, attention), network.keys(seen, attention))
    )
    rows = rows + network.attend(queries, keys, seen, attention)
    seen = network.norm(rows, f"{_LAYER}post_attention_layernorm", eps)
    inner = silu(network.map(seen, f"{_LAYER}mlp.gate_proj")) * network.map(seen, f"{_LAYER}mlp.up_proj")
    return rows + network.map(inner, f"{_LAYER}mlp.down_proj")


def _rotated(heads: Tensor, language: LanguageShape) -> Tensor:
    """Rotary embedding, half-split layout, of [h, n, d] at positions 0 to n - 1."""
    powers = torch.arange(0, language.head, 2, device=heads.device, dtype=torch.float32) / language.head
    angles = torch.arange(heads.shape[1], device=heads.device)[:, None] * language.theta**-powers
    cos, sin = angles.cos(), angles.sin()
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _head(network: Network, rows: Tensor, name: str) -> Tensor:
    """Five maps with SiLU between them; the second logit less the first, float32 [n]."""
    for i in range(5):
        rows = network.map(rows if i == 0 else silu(rows), f"{name}.{2 * i}")
    return rows[:, 1] - rows[:, 0]
