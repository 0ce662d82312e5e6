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


def whole_first_group(budget: DepthBudget) -> tuple[int, ...]:
    """M in the first group; in later ones what makes the mean over all layers C, at least all text, at most M.

    C in every group where that is all that there is, or where there is one.
    """
    if budget.count >= budget.prompt or len(budget.layers) == 1:
        return (budget.count,) * len(budget.layers)
    early, total = budget.layers[0], sum(budget.layers)
    rest = (total * budget.count - early * budget.prompt) // (total - early)
    late = min(budget.prompt, max(budget.prompt - budget.visual, rest))
    return (budget.prompt, *[late] * (len(budget.layers) - 1))
