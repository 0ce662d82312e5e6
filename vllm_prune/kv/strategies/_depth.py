"""What a strategy divides over groups of layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DepthBudget:
    """A request's budget before it is divided; known before anything of the request is computed.

    Attributes:
        count: C, rows that the budget leaves per layer, on average over all layers.
        window: W, rows at the end of the prompt that every layer keeps.
        prompt: M, rows of the prompt.
        visual: visual tokens of the prompt before its window.
        layers: number of layers of each group, from the first layers to the last.
    """

    count: int
    window: int
    prompt: int
    visual: int
    layers: tuple[int, ...]
