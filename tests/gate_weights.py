"""Random gates in the authors' layout, and gates that say what a test wants whatever they read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

INNER = 2048
"""Inner width of the authors' gates."""


def gate_weights(layers: int, width: int, inner: int = INNER, seed: int = 0) -> dict[str, Tensor]:
    """A gate behind each layer; random, so that some say one thing and some the other."""
    source = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        name = f"visual_gates_router.{layer}"
        tensors[f"{name}.w1.weight"] = torch.randn(inner, 2 * width, generator=source) * (2 * width) ** -0.5
        tensors[f"{name}.w2.weight"] = torch.randn(2, inner, generator=source) * inner**-0.5
    return tensors


def rigged(answers: Sequence[bool], width: int) -> dict[str, Tensor]:
    """A gate for each answer, True to leave visual tokens out.

    GELU of a number and of its negative add up to more than zero, unless it is zero; the logits are such sums.
    """
    tensors = {}
    for layer, leave in enumerate(answers):
        half = torch.randn(8, 2 * width, generator=torch.Generator().manual_seed(layer))
        sums = torch.ones(2, 16)
        sums[1 - int(leave)] = -1
        tensors[f"visual_gates_router.{layer}.w1.weight"] = torch.cat([half, -half])
        tensors[f"visual_gates_router.{layer}.w2.weight"] = sums
    return tensors


def reference(tensors: Mapping[str, Tensor], gate: int, text: Tensor) -> list[float]:
    """Logits of a gate in float64.

    Args:
        tensors: the gates.
        gate: behind which layer.
        text: [n, D] hidden states of the text behind the picture, that of the prompt's last token last.
    """
    states = text.double().numpy()
    features = np.concatenate([states[:-1].mean(0), states[-1]])
    first, second = (tensors[f"visual_gates_router.{gate}.w{i}.weight"].double().numpy() for i in (1, 2))
    activated = np.array([x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in first @ features])
    return [float(logit) for logit in second @ activated]
