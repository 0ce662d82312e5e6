"""A codebook of a whole video, read by a trained layer with a map of each frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import layer_norm, multi_head_attention_forward, relu

from ...grid import Grid
from ._frames import Frames
from ._signals import required
from ._trained import LanguageShape, LayoutError, Network, Shapes, TrainedStrategy
from .base import Context, NoOptions, Reduction, check_counts
from .maths import SKETCH, drawn_centers, evenly_spaced, mean_by, sketch, spherical_groups, unit_rows

HEADS = 8
"""In the authors' layer; the shapes of its tensors do not say it."""

# The weights were trained on 32 groups; of many more, each step takes as long as choosing does elsewhere.
_STEPS, _STEPS_OF_MANY = 50, 4
_DECODER = "transformer_decoder.layers."
_ATTENTIONS = ("self_attn", "multihead_attn")


class VqTokenOptions(NoOptions):
    """Options of `vqtoken`.

    Attributes:
        steps: how often patches are given to groups, at most. By default 50, as in the authors' code, and 4 where there
            are more than 128 groups.
    """

    steps: Annotated[int, Field(ge=1, le=50)] | None = None


class VqToken(TrainedStrategy):
    """VQToken (arXiv 2503.16980, section 3): k-means over every patch of a video, then a layer of attention.

    Unit patches of all frames are put into as many groups as there are rows to make, by cosine from the first centers
    of k-means++ (into more than 128 groups by a sketch, in fewer steps). The codebook is the mean of each group. A
    frame's query is its map, the number of the group of each of its patches; in a post-norm layer the queries attend to
    each other and to the codebook.

    With fewer frames than rows, the authors repeat the frames in turn until there are as many queries as groups: rows
    of one frame are then equal. With more frames than rows their layer gives a row for each frame, of which evenly
    spaced ones stay here. Rows stand one after the other as the last of the video, in front of the row that ends it.
    The layer is by the authors' public code; their weights have not been run here.
    """

    name = "vqtoken"
    paper = "VQToken, arXiv 2503.16980, section 3, with a fixed count"
    summary = "what a trained layer makes of groups of alike patches and of where each frame has them"
    modalities = frozenset({"video"})
    needs = frozenset({"unpooled", "weights"})
    floor = False
    rewrites = True
    Options = VqTokenOptions
    options: VqTokenOptions
    anchor = f"{_DECODER}0.multihead_attn.in_proj_weight"
    source = "haichaozhang/VQ-Token-llava-ov-0.5b, for LLaVA-OneVision 0.5B"

    @classmethod
    def layout(cls, shapes: Shapes, language: LanguageShape) -> dict[str, tuple[int, ...]]:
        """See `TrainedStrategy.layout`; how many layers there are, and how wide their MLPs, is open."""
        width, patches = language.width, language.frame_patches
        if not patches:
            raise LayoutError("its queries are maps of frames of one size, and this model's configuration names none")
        if width % HEADS:
            raise LayoutError(f"its layer has {HEADS} heads, which do not divide a width of {width}")
        expected: dict[str, tuple[int, ...]] = {"to_q_proj.weight": (width, patches), "to_q_proj.bias": (width,)}
        for name in _layers(shapes):
            hidden = shapes.get(f"{name}linear1.bias", (0,))[0]
            for part in (f"{name}{attention}." for attention in _ATTENTIONS):
                expected |= {f"{part}in_proj_weight": (3 * width, width), f"{part}in_proj_bias": (3 * width,)}
                expected |= {f"{part}out_proj.weight": (width, width), f"{part}out_proj.bias": (width,)}
            expected |= {f"{name}norm{i}.{kind}": (width,) for i in (1, 2, 3) for kind in ("weight", "bias")}
            expected |= {f"{name}linear1.weight": (hidden, width), f"{name}linear1.bias": (hidden,)}
            expected |= {f"{name}linear2.weight": (width, hidden), f"{name}linear2.bias": (width,)}
        return expected

    @classmethod
    def served(cls, language: LanguageShape) -> str:
        """See `TrainedLayout.served`."""
        return f"{super().served(language)} and a tower of {language.frame_patches} patches per frame"

    def select(
        self, tokens: Tensor, grid: Grid, count: int, context: Context, per_frame: Sequence[int] | None = None
    ) -> Tensor:
        """The places that the rows take; see `Strategy.select`."""
        return self.reduce(tokens, grid, count, context, per_frame).kept

    def reduce(
        self, tokens: Tensor, grid: Grid, count: int, context: Context, per_frame: Sequence[int] | None = None
    ) -> Reduction:
        """See `Strategy.reduce`.

        Raises:
            ValueError: the model adapter gave no frames or no weights.
        """
        check_counts(len(tokens), grid, count, per_frame)
        if count == grid.tokens:
            return Reduction(torch.arange(count, device=tokens.device))
        frames: Frames = required(self.name, "unpooled", context.unpooled)
        network = self.network(context)
        # What stands behind the frames ends the video, and stays unless nothing else would.
        ends = grid.tokens - len(frames.rows) * frames.pooled
        made = count - ends if count > ends else count
        encoded = self._encoded(network, frames, made, context.seed)
        kept = _last(grid, count, per_frame, tokens.device)

        def placed(rows: Tensor) -> Tensor:
            left = rows[kept].float()
            left[:made, : encoded.shape[1]] = encoded
            return left

        return Reduction(kept, placed)

    def _encoded(self, network: Network, frames: Frames, count: int, seed: int) -> Tensor:
        """The layer's rows, float32 [count, D]."""
        codes, maps = self._codebook(frames, count, seed)
        by_frame = _decode(network, maps.float(), codes)
        if count < len(by_frame):
            return by_frame[evenly_spaced(len(by_frame), count, codes.device)]
        return by_frame[torch.arange(count, device=codes.device) % len(by_frame)]

    def _codebook(self, frames: Frames, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Codes, float32 [count, D], and the number of each patch's, int64 [T, P]."""
        patches = frames.rows.flatten(0, 1)
        units = unit_rows(patches)
        compared, steps = (units, _STEPS) if count <= SKETCH else (sketch(patches), _STEPS_OF_MANY)
        first = drawn_centers(compared, count, seed)
        owner = spherical_groups(compared, first, self.options.steps or steps)
        return mean_by(units, owner, count), owner.view(frames.rows.shape[:2])


def _last(grid: Grid, count: int, per_frame: Sequence[int] | None, device: torch.device) -> Tensor:
    """The last `count` cells, or the last `per_frame[t]` of each frame t; int64, ascending."""
    if per_frame is None:
        return torch.arange(grid.tokens - count, grid.tokens, device=device)
    ends = (grid.per_frame * (t + 1) for t in range(grid.frames))
    return torch.cat([torch.arange(end - n, end, device=device) for end, n in zip(ends, per_frame, strict=True)])


def _layers(names: Shapes | dict[str, Tensor]) -> list[str]:
    """Prefixes of the decoder's layers, in order; the first one also where it is missing."""
    numbers = {name.removeprefix(_DECODER).partition(".")[0] for name in names if name.startswith(_DECODER)}
    return [f"{_DECODER}{number}." for number in sorted(map(int, numbers | {"0"}))]


def _decode(network: Network, maps: Tensor, codes: Tensor) -> Tensor:
    """The decoder's rows of the frames, float32 [T, D].

    The authors repeat maps or codes, whichever are fewer, until both are as many. Repeats weigh like their number, so
    that each row is computed once.

    Args:
        network: the layers.
        maps: float32 [T, P].
        codes: float32 [K, D].
    """
    rows, longer = network.map(maps, "to_q_proj"), max(len(maps), len(codes))
    for name in _layers(network.tensors):
        for i, (attention, memory) in enumerate(zip(_ATTENTIONS, (None, codes), strict=True), 1):
            seen = rows if memory is None else memory
            rows = _norm(network, rows + _attend(network, rows, seen, longer, f"{name}{attention}"), f"{name}norm{i}")
        inner = network.map(relu(network.map(rows, f"{name}linear1")), f"{name}linear2")
        rows = _norm(network, rows + inner, f"{name}norm3")
    return rows


def _attend(network: Network, rows: Tensor, seen: Tensor, longer: int, name: str) -> Tensor:
    """What `rows` read of `seen` where that is repeated in turn up to a length, float32 [n, D]."""
    count = len(seen)
    repeats = longer // count + (torch.arange(count, device=seen.device) < longer % count)
    weight, bias, out_weight, out_bias = (
        network.tensors[f"{name}.{part}"].float()
        for part in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    )
    mixed, _ = multi_head_attention_forward(
        rows[:, None], seen[:, None], seen[:, None], rows.shape[1], HEADS, weight, bias, None, None, False, 0.0,
        out_weight, out_bias, training=False, need_weights=False,
        attn_mask=repeats.float().log().expand(len(rows), -1),
    )  # fmt: skip
    return mixed[:, 0]


def _norm(network: Network, rows: Tensor, name: str) -> Tensor:
    weight, bias = (network.tensors[f"{name}.{kind}"].float() for kind in ("weight", "bias"))
    return layer_norm(rows, rows.shape[-1:], weight, bias)
