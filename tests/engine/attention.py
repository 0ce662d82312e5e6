"""Attention received by each cell in one block of transformers' vision tower, from its full softmax."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from .oracle import Oracle


def received(oracle: Oracle, pixels: Tensor, thw: Tensor, block: int, queries: int | None = None) -> list[Tensor]:
    """float32 [M] per item in raster order: mean over heads, queries of the frame, and patches of a cell.

    Args:
        block: index of the tower block.
        queries: how many evenly spaced queries of each frame count; all where None.
    """
    visual = oracle.hf.model.visual
    weights: list[Tensor] = []
    windows: list[Tensor] = []
    with _listening(visual, block, weights, windows), torch.no_grad():
        visual(pixels.float(), grid_thw=thw)
    frames = [_mean(frame, queries) for frame in weights]
    cells = torch.cat(frames).view(-1, 4).mean(1)
    if windows:
        raster = torch.empty_like(cells)
        # Cell i of the tower's order is cell windows[0][i] of the batch.
        raster[windows[0]] = cells
        cells = raster
    return list(cells.split((thw.prod(-1) // 4).tolist()))


def _mean(weights: Tensor, queries: int | None) -> Tensor:
    """[heads, n, n] to [n]."""
    n = weights.shape[1]
    rows = range(n) if queries is None else [(2 * i + 1) * n // (2 * min(queries, n)) for i in range(min(queries, n))]
    return weights[:, list(rows)].mean((0, 1))


@contextmanager
def _listening(visual: Any, block: int, weights: list[Tensor], windows: list[Tensor]) -> Iterator[None]:
    """Collect the attention weights of a block per frame, and the window order where the tower has one."""
    modeling = sys.modules[type(visual).__module__]
    eager, wanted = modeling.eager_attention_forward, visual.blocks[block].attn
    before = visual.config._attn_implementation

    def spy(module: Any, *args: Any, **kwargs: Any) -> Any:
        output, probabilities = eager(module, *args, **kwargs)
        if module is wanted:
            weights.append(probabilities[0].float())
        return output, probabilities

    def permute(tensor: Tensor, window_index: Tensor, **kwargs: Any) -> Tensor:
        windows.append(window_index)
        return original(tensor, window_index, **kwargs)

    original = getattr(visual, "permute_input_for_window_attn", None)
    visual.config._attn_implementation = "eager"
    try:
        with patch.object(modeling, "eager_attention_forward", spy):
            if original is None:
                yield
            else:
                with patch.object(visual, "permute_input_for_window_attn", permute):
                    yield
    finally:
        visual.config._attn_implementation = before
