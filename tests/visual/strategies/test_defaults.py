"""The strategies that budgets get which name none, on items of any size."""

from __future__ import annotations

import pytest
import torch

from vllm_prune.budget.fields import DEFAULT_CHOICES
from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies.base import Context

DEFAULTS = sorted({choice.strategy for choices in DEFAULT_CHOICES.values() for choice in choices})
TINY = (Grid(1, 1, 1), Grid(1, 1, 2), Grid(1, 2, 2), Grid(1, 1, 7), Grid(1, 5, 1), Grid(2, 1, 1), Grid(3, 2, 1))


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("content", ["random", "equal", "zero"])
def test_tiny_items_keep_exactly_what_they_may(name: str, dtype: torch.dtype, content: str) -> None:
    for grid in TINY:
        random = torch.randn(grid.tokens, 24, generator=torch.Generator().manual_seed(grid.tokens))
        tokens = {"random": random, "equal": random[:1].expand_as(random), "zero": torch.zeros_like(random)}[content]
        for count in range(1, grid.tokens + 1):
            kept = VISUAL.create(name).select(tokens.to(dtype), grid, count, Context(1)).tolist()
            assert kept == sorted({*kept})
            assert len(kept) == count
            assert {*kept} <= {*range(grid.tokens)}


def test_the_default_of_images_keeps_what_stands_out() -> None:
    """On one image: what is unlike the rest, before any of what repeats."""
    grid, odd = Grid(1, 6, 8), [3, 17, 40]
    source = torch.Generator().manual_seed(2)
    tokens = torch.randn(1, 64, generator=source) + 0.05 * torch.randn(grid.tokens, 64, generator=source)
    tokens[odd] = torch.randn(3, 64, generator=source)
    for choice in DEFAULT_CHOICES["image"]:
        for dtype in (torch.float32, torch.bfloat16):
            kept = VISUAL.create(choice.strategy).select(tokens.to(dtype), grid, 5, Context(1)).tolist()
            assert {*odd} <= {*kept}, choice
