"""The scorer of STTS (arXiv 2603.18004, section 3): a value in (0, 1) for every cell, high for cells to keep.

Plain PyTorch in float32, for serving and for training. A cell is what the tower's merger joins into one token of
the language model: 2 x 2 patches in the Qwen-VL towers, 3 x 3 in Molmo2's. Nothing depends on that size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from ....grid import Grid

Rescale = Literal["row", "frame", "video"]
FLOOR = math.exp(-2)
"""Lowest weight of a key in the biased block; its logarithm, -2, is the lowest bias."""

_AXES: dict[str, tuple[int, ...]] = {"row": (2,), "frame": (1, 2), "video": (0, 1, 2)}
_ROWS = 1024
"""Cells at a time: of more, what the layers hold in between would set the peak of the encoder's memory."""


@dataclass(frozen=True)
class Shape:
    """Sizes and conventions of a scorer; they are the metadata of its file.

    Attributes:
        width: hidden size of the tower, D.
        heads: attention heads of the pooler; D is a multiple.
        hidden: width of the two hidden layers of the MLP.
        merge: patches per side of a cell.
        after: blocks of the tower in front of the scorer. The next one is biased, and the cut follows it.
        rescale: over what scores are stretched to [e^-2, 1]; the released code does it per image row.
        refill: "ffd" lets frames that would fill a bin alone keep their cut cells as context in the tower, as the
            released packing does (section 3 there); "off" lets them go.
    """

    width: int
    heads: int
    hidden: int
    merge: int
    after: int
    rescale: Rescale = "row"
    refill: Literal["off", "ffd"] = "off"

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.hidden, self.merge) < 1 or self.after < 0 or self.width % self.heads:
            raise ValueError(f"not the shape of a scorer: {self}")
        if self.rescale not in get_args(Rescale) or self.refill not in ("off", "ffd"):
            raise ValueError(f"rescale is row, frame or video and refill off or ffd: {self}")


class Pooler(nn.Module):
    """Attention inside a cell: the mean of its patches is the query, its patches are keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(width, width) for _ in range(4))

    def forward(self, cells: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool.

        Args:
            cells: float32 [C, U, D], the patches of each cell.
            mask: bool [C, U], False for a patch that is not there; at least one is. Such a patch counts as zeros
                in the mean, which is over U, and gets no attention.

        Returns:
            float32 [C, D].
        """
        if mask is not None:
            cells = cells.masked_fill(~mask[..., None], 0)
        query = self._heads(self.wq(cells.mean(1, keepdim=True)))
        # By hand: attention kernels are made for long rows, and take ten times as long over a handful of keys.
        logits = (query * self._heads(self.wk(cells))).sum(-1) * (cells.shape[2] // self.heads) ** -0.5
        if mask is not None:
            logits = logits.masked_fill(~mask[..., None], -torch.inf)
        pooled = (logits.softmax(1)[..., None] * self._heads(self.wv(cells))).sum(1)
        return self.wo(pooled.flatten(1))

    def _heads(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.heads, -1))


class Mlp(nn.Module):
    """Three linear layers with SiLU between them; a logit per row."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """float32 [C, width] to [C]."""
        return self.w3(silu(self.w2(silu(self.w1(rows))))).squeeze(-1)


class Scorer(nn.Module):
    """Pooler, the same place one frame earlier, MLP, sigmoid.

    Weights start from a truncated normal of deviation 1/sqrt(fan in), biases from zero, as in the released code.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.pooler = Pooler(shape.width, shape.heads)
        self.mlp = Mlp(2 * shape.width, shape.hidden)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)

    def pool(self, cells: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pooled cells, float32 [C, D], from any float dtype; see `Pooler.forward`."""
        parts = cells.split(_ROWS)
        masks = [None] * len(parts) if mask is None else mask.split(_ROWS)
        return torch.cat([self.pooler(part.float(), part_mask) for part, part_mask in zip(parts, masks, strict=True)])

    def score(self, cells: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Scores of pooled cells, see `pool`.

        Args:
            cells: float32 [sum of M, D] in raster order, one item after the other.
            grids: the items. Every one starts anew: its first frame has zeros before it.

        Returns:
            float32 [sum of M] in (0, 1).
        """
        items = cells.split([grid.tokens for grid in grids])
        # A frame earlier is P rows up; rows of the first frame see zeros.
        before = [pad(item, (0, 0, grid.per_frame, 0))[: len(item)] for item, grid in zip(items, grids, strict=True)]
        rows = zip(torch.cat(before).split(_ROWS), cells.split(_ROWS), strict=True)
        return torch.cat([self.mlp(torch.cat(pair, -1)) for pair in rows]).sigmoid()


def key_bias(scores: Tensor, grids: Sequence[Grid], rescale: Rescale = "row") -> Tensor:
    """What is added to the attention logits of each cell's keys in the biased block (section 3, log-score bias).

    ln(e^-2 + (s - min) (1 - e^-2) / (max - min + 1e-6)), with min and max over an image row, a frame or the item.
    A constant row thus gets -2, as in the released code. The first frame of an item of several gets 0. An item of
    one frame is biased like any later frame: the paper never prunes images, here they are pruned by place alone.

    Args:
        scores: float [sum of M], see `Scorer.score`.
        grids: the items.
        rescale: over what the scores are stretched.

    Returns:
        [sum of M] in [-2, 0].
    """
    biases = []
    for item, grid in zip(scores.split([grid.tokens for grid in grids]), grids, strict=True):
        cells = item.view(grid.frames, grid.rows, grid.cols)
        low, high = cells.amin(_AXES[rescale], keepdim=True), cells.amax(_AXES[rescale], keepdim=True)
        bias = (FLOOR + (cells - low) * (1 - FLOOR) / (high - low + 1e-6)).log()
        if grid.frames > 1:
            bias = torch.cat([torch.zeros_like(bias[:1]), bias[1:]])
        biases.append(bias.flatten())
    return torch.cat(biases)


def lone_frames(counts: Sequence[int], capacity: int) -> list[int]:
    """Frames that first-fit-decreasing packing leaves alone in a bin, ascending.

    Args:
        counts: cells that each frame keeps.
        capacity: cells of a whole frame, which is the size of a bin.
    """
    bins: list[tuple[int, list[int]]] = []
    for frame in sorted(range(len(counts)), key=lambda i: -counts[i]):
        if not counts[frame]:
            continue
        for i, (used, members) in enumerate(bins):
            if used + counts[frame] <= capacity:
                bins[i] = used + counts[frame], [*members, frame]
                break
        else:
            bins.append((counts[frame], [frame]))
    return sorted(members[0] for _, members in bins if len(members) == 1)
