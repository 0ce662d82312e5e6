"""Molmo2's listener: the attention of the last blocks, by cells of items of several sizes."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from vllm_prune.visual.tower.molmo2 import FrameAttention, received


class Attention(nn.Module):
    """The parts of vLLM's module that are read."""

    q_size = kv_size = 8
    head_dim = 4
    scale = 0.5

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(seed))

    def merged_qkv(self, hidden: Tensor) -> tuple[Tensor, None]:
        return hidden @ self._weight, None

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden


def test_rows_are_blocks_from_the_last_on() -> None:
    blocks = [SimpleNamespace(attention=Attention(seed)) for seed in range(3)]
    backbone = SimpleNamespace(image_vit=SimpleNamespace(transformer=SimpleNamespace(resblocks=blocks)))
    hidden = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(9))
    # Two items, of one frame and of two, with cells of two patches each.
    pooling, cells = torch.arange(24).view(12, 2), [4, 8]
    for count, numbers in ((1, [2]), (2, [2, 1]), (None, [2, 1, 0])):
        with FrameAttention(backbone, count) as listener:
            for block in blocks:
                block.attention(hidden)
        items = listener.per_item(pooling, cells)
        assert [item.shape for item in items if item is not None] == [(len(numbers), 4), (len(numbers), 8)]
        for row, number in enumerate(numbers):
            expected = received(blocks[number].attention, hidden).flatten().view(12, 2).mean(1)
            assert torch.equal(torch.cat([item[row] for item in items if item is not None]), expected)
    with FrameAttention(backbone, 0) as idle:
        blocks[0].attention(hidden)
    assert idle.per_item(pooling, cells) == [None, None]
