"""Structured tensors on which two implementations choose: clusters, smooth frames, planted content, near-duplicates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vllm_prune.grid import Grid
from vllm_prune.visual.strategies.base import Context

KINDS = ("clusters", "smooth", "planted", "repeats")


@dataclass(frozen=True)
class Case:
    """An item and how much of it to keep.

    Attributes:
        kind: one of `KINDS`.
        tokens: [M, D] float32.
        grid: of the item.
        keep: share of M.
        context: attention that sums to one per frame, scores, sensitivity and seven tokens of text.
    """

    kind: str
    tokens: Tensor
    grid: Grid
    keep: float
    context: Context

    @property
    def count(self) -> int:
        """K."""
        return round(self.keep * self.grid.tokens)

    @property
    def frames(self) -> Tensor:
        """The tokens as [T, P, D]."""
        return self.tokens.view(self.grid.frames, self.grid.per_frame, -1)

    @property
    def attention(self) -> Tensor:
        """What each cell receives, [T, P]."""
        assert self.context.tower_attention is not None
        return self.context.tower_attention.view(self.grid.frames, -1)


def cases(
    grids: Sequence[tuple[int, int, int]], widths: Sequence[int], keeps: Sequence[float], seeds: int
) -> Iterator[Case]:
    """Every kind of content in every shape, drawn `seeds` times."""
    for shape in grids:
        grid = Grid(*shape)
        for width in widths:
            for number, kind in enumerate(KINDS):
                for seed in range(seeds):
                    source = torch.Generator().manual_seed(1000 * number + seed)
                    tokens, marked = features(kind, grid, width, source)
                    context = _context(tokens, marked, grid, source)
                    yield from (Case(kind, tokens, grid, keep, context) for keep in keeps)


def features(kind: str, grid: Grid, width: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens [M, D] and how much each stands out, float32 [M]."""
    count = grid.tokens
    noise = torch.randn(count, width, generator=source)
    if kind == "clusters":
        centers = torch.randn(max(4, count // 12), width, generator=source)
        skewed = torch.rand(count, generator=source).square() * len(centers)
        return centers[skewed.long()] + 0.4 * noise, torch.rand(count, generator=source)
    if kind == "smooth":
        return _smooth(grid, width, source) + 0.1 * noise, torch.rand(count, generator=source)
    if kind == "planted":
        marked = (torch.rand(count, generator=source) < 0.08).float()
        plain = torch.randn(width, generator=source) + 0.15 * noise
        return plain + 1.5 * marked[:, None] * torch.randn(count, width, generator=source), marked
    scene = torch.randn(-(-grid.frames // 3), grid.per_frame, width, generator=source)
    # Neighbours in a row are nearly the same, too.
    scene[:, 1::4] = scene[:, : scene[:, 1::4].shape[1] * 4 : 4]
    shown = scene.repeat_interleave(3, dim=0)[: grid.frames].reshape(count, width)
    changes = (torch.rand(count, 1, generator=source) < 0.15).float()
    return shown + (0.02 + 0.8 * changes) * noise, changes[:, 0]


def _smooth(grid: Grid, width: int, source: torch.Generator) -> Tensor:
    """Two fields that turn into each other over the frames, with a cut in the middle of a long video."""
    fields = torch.randn(3, width, -(-grid.rows // 4) + 1, -(-grid.cols // 4) + 1, generator=source)
    first, second, after = interpolate(fields, (grid.rows, grid.cols), mode="bilinear").flatten(2).mT
    frames = []
    for t in range(grid.frames):
        angle = 0.5 * math.pi * t / max(1, grid.frames)
        start = after if grid.frames >= 8 and t >= grid.frames // 2 else first
        frames.append(math.cos(angle) * start + math.sin(angle) * second)
    return 1.5 * torch.cat(frames)


def _context(tokens: Tensor, marked: Tensor, grid: Grid, source: torch.Generator) -> Context:
    draws = torch.randn(3, grid.tokens, generator=source)
    attention = (draws[0] + 2 * marked).view(grid.frames, -1).softmax(1).flatten()
    places = torch.randint(grid.tokens, (7,), generator=source)
    text = tokens[places] + torch.randn(7, tokens.shape[1], generator=source)
    return Context(
        tower_attention=attention,
        scores=draws[1] + marked,
        sensitivity=(0.4 * draws[2] + marked).exp(),
        text=text * (0.5 + torch.rand(7, 1, generator=source)),
    )
