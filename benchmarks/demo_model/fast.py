"""The tower's mathematics in fewer kernel calls, for training on a CPU.

transformers attends window by window, hundreds of small calls per batch. Windows of equal length are
attended together here; the values are the same.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision


def speed_up(model: Any) -> None:
    """Replace the forward of the tower's attention and patch embedding on this instance."""
    visual = model.model.visual
    visual.patch_embed.forward = MethodType(_embed, visual.patch_embed)
    for block in visual.blocks:
        block.attn.forward = MethodType(_attend, block.attn)


def _embed(self: Any, hidden_states: Tensor) -> Tensor:
    # Kernel and stride are the patch itself, so the convolution is one product.
    return linear(hidden_states, self.proj.weight.flatten(1))


def _attend(self: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any, **_: Any) -> Tensor:
    count = len(hidden_states)
    query, key, value = self.qkv(hidden_states).view(count, 3, self.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    packed = torch.stack([query.to(value.dtype), key.to(value.dtype), value], dim=1)
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    parts, places = [], []
    for length in lengths.unique().tolist():
        starts = cu_seqlens[:-1][lengths == length]
        index = starts[:, None] + torch.arange(length)
        q, k, v = packed[index].permute(2, 0, 3, 1, 4).unbind(0)
        parts.append(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(index.numel(), -1))
        places.append(index.flatten())
    order = torch.cat(places).argsort()
    return self.proj(torch.cat(parts)[order])
