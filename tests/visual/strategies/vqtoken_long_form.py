"""VQToken's codebook and layer in float64, with nothing left out that is the same twice."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def decoded(w: Tensors, maps: Tensor, codes: Tensor) -> Tensor:
    """VQToken's layer with every repeat written out, head by head, in float64: what it makes of each query."""
    longer = max(len(maps), len(codes))
    rows = maps[torch.arange(longer) % len(maps)] @ w["to_q_proj.weight"].T + w["to_q_proj.bias"]
    memory, name = codes[torch.arange(longer) % len(codes)], "transformer_decoder.layers.0."

    def attention(part: str, x: Tensor, seen: Tensor) -> Tensor:
        inside = w[f"{name}{part}.in_proj_weight"].chunk(3), w[f"{name}{part}.in_proj_bias"].chunk(3)
        q, k, v = (one @ weight.T + bias for one, weight, bias in zip((x, seen, seen), *inside, strict=True))
        size = q.shape[1] // 8
        heads = [slice(size * i, size * (i + 1)) for i in range(8)]
        mixed = [(q[:, h] @ k[:, h].T / math.sqrt(size)).softmax(-1) @ v[:, h] for h in heads]
        return torch.cat(mixed, 1) @ w[f"{name}{part}.out_proj.weight"].T + w[f"{name}{part}.out_proj.bias"]

    def norm(x: Tensor, which: int) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}norm{which}.weight"] + w[f"{name}norm{which}.bias"]

    rows = norm(rows + attention("self_attn", rows, rows), 1)
    rows = norm(rows + attention("multihead_attn", rows, memory), 2)
    inner = (rows @ w[f"{name}linear1.weight"].T + w[f"{name}linear1.bias"]).clamp_min(0)
    return norm(rows + inner @ w[f"{name}linear2.weight"].T + w[f"{name}linear2.bias"], 3)


def codebook(patches: Tensor, count: int, seed: int, steps: int) -> tuple[Tensor, Tensor]:
    """K-means by cosine from k-means++, in float64 and one row at a time: codes, and the group of each row."""
    units = (patches.double() / patches.double().norm(dim=1, keepdim=True)).numpy()
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    weights = np.full(len(units), 1.0)
    centers = []
    for i, draw in enumerate(draws):
        place = int(np.searchsorted(weights.cumsum(), draw * weights.sum(), side="right"))
        squares = ((units - units[place]) ** 2).sum(1) * 2**20 + 1
        weights = squares if i == 0 else np.minimum(weights, squares)
        centers.append(units[place])
    owner = np.zeros(len(units), int)
    for _ in range(steps):
        cosines = units @ np.stack([center / np.linalg.norm(center) for center in centers]).T
        owner = cosines.argmax(1)
        centers = [units[owner == k].mean(0) if (owner == k).any() else centers[k] for k in range(count)]
    means = [units[owner == k].mean(0) if (owner == k).any() else np.zeros(units.shape[1]) for k in range(count)]
    return torch.from_numpy(np.stack(means)), torch.from_numpy(owner)
