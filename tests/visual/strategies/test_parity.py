"""Same decisions as vLLM's own pruning, on content that is easy and content that is all ties."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies.base import Context
from vllm_prune.visual.strategies.vidcom2 import pruning_rate

evs = pytest.importorskip("vllm.multimodal.video_prune.evs")
vidcom2 = pytest.importorskip("vllm.multimodal.video_prune.vidcom2")

GRIDS = [Grid(1, 4, 5), Grid(2, 3, 3), Grid(3, 7, 5), Grid(6, 6, 6), Grid(8, 16, 16), Grid(16, 1, 1), Grid(5, 9, 13)]
RATES = [0.1, 0.3, 0.5, 0.7, 0.75, 0.8, 0.9, 0.95]
CONTENT = ["random", "smooth", "static", "pairs", "constant", "zero", "ties"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def video(content: str, grid: Grid, dtype: torch.dtype, width: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(grid.tokens)
    frames = torch.randn(grid.frames, grid.per_frame, width, generator=generator)
    if content == "smooth":
        frames = frames[:1] + 0.1 * frames.cumsum(0)
    elif content == "static":
        frames = frames[:1].expand(grid.frames, -1, -1)
    elif content == "pairs":
        frames = frames[torch.arange(grid.frames) // 2]
    elif content == "constant":
        frames = frames[:1, :1].expand(grid.frames, grid.per_frame, -1)
    elif content == "zero":
        frames = frames * 0
    elif content == "ties":
        frames = frames.sign()[:, torch.arange(grid.per_frame) % 4]
    return frames.reshape(grid.tokens, width).to(dtype)


def mask_of(module, tokens: Tensor, grid: Grid, rate: float) -> list[int]:
    mask = module.compute_retention_mask(tokens, (grid.frames, 2 * grid.rows, 2 * grid.cols), 2, rate)
    return mask.nonzero().squeeze(1).tolist()


def kept_by(name: str, tokens: Tensor, grid: Grid, count: int) -> list[int]:
    return VISUAL.create(name).select(tokens, grid, count, Context()).tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_evs(grid: Grid, content: str, dtype: torch.dtype):
    tokens = video(content, grid, dtype)
    for rate in RATES:
        count = evs.compute_retained_tokens_count(grid.per_frame, grid.frames, rate)
        assert kept_by("evs", tokens, grid, count) == mask_of(evs, tokens, grid, rate)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_vidcom2(grid: Grid, content: str, dtype: torch.dtype):
    tokens = video(content, grid, dtype)
    for rate in RATES:
        count = vidcom2.compute_retained_tokens_count(grid.per_frame, grid.frames, rate)
        # On a small grid several rates give this count, and some grids round up to one token per frame.
        called_with = pruning_rate(count, grid.tokens)
        assert vidcom2.compute_retained_tokens_count(grid.per_frame, grid.frames, called_with) == count
        assert kept_by("vidcom2", tokens, grid, count) == mask_of(vidcom2, tokens, grid, called_with)


@pytest.mark.parametrize("grid", [Grid(8, 16, 16), Grid(7, 13, 17), Grid(16, 24, 19)], ids=str)
def test_vidcom2_with_the_rate_as_it_was_written(grid: Grid):
    tokens = video("smooth", grid, torch.float32)
    for percent in range(5, 96, 5):
        rate = percent / 100
        count = vidcom2.compute_retained_tokens_count(grid.per_frame, grid.frames, rate)
        assert pruning_rate(count, grid.tokens) == rate
        assert kept_by("vidcom2", tokens, grid, count) == mask_of(vidcom2, tokens, grid, rate)


@pytest.mark.parametrize("total", [1, 2, 7, 30, 97, 1000, 4099])
def test_pruning_rate_gives_the_count_back(total: int):
    for count in range(1, total + 1):
        rate = pruning_rate(count, total)
        assert 0 <= rate < 1
        assert int(total * (1.0 - rate)) == count
