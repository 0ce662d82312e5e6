"""DyVTE: trained gates say behind which layer the picture is no longer needed; from there on text comes first."""

from __future__ import annotations

import torch

from ...visual.strategies._trained import LanguageShape, LayoutError, Shapes, TrainedLayout
from ._depth import DepthBudget, whole_first_group
from .base import TEXT, LayerView, Scores
from .snapkv import SnapKv

GATE = "visual_gates_router.{}.w{}.weight"
"""Name of the first or second map of the gate behind a layer, counted from 0."""


class DyVte(TrainedLayout, SnapKv):
    """SnapKV, and in the layers behind the first gate that says so all text above any visual token.

    The authors drop all visual tokens there, however many there are. Here the budget says how many rows stay, and the
    gates which: with no more rows than the prompt has text, none of a visual token is among them.

    Evicts once, after prefill: what is decoded is text. A budget is divided over groups of layers as by `visual_exit`.
    """

    name = "dyvte"
    paper = "DyVTE, arXiv 2411.19628, its gates; how many rows stay is the budget's"
    summary = "as `snapkv`; behind the first layer whose trained gate says so, all text before any visual token"
    needs = frozenset({"queries", "gates"})
    once = True
    anchor = GATE.format(0, 1)
    source = "of which none are published; the code at DoubtedSteam/DyVTE trains them for LLaVA-1.5"

    def by_head(self) -> bool:
        """The gates are those of a layer."""
        return False

    @classmethod
    def layout(cls, shapes: Shapes, language: LanguageShape) -> dict[str, tuple[int, ...]]:
        """See `TrainedLayout.layout`. The inner width, 2,048 in the authors' code, is that of the first gate.

        No layer follows the gate behind the last one, which may be missing and is not read.
        """
        count = language.layers
        if count < 2:
            raise LayoutError(f"gates stand between layers, of which this model's configuration names {count}")
        if GATE.format(count, 1) in shapes:
            raise LayoutError(f"it has a gate behind layer {count}, and this model's last layer is {count - 1}")
        inner, *_ = shapes[cls.anchor] or (0,)
        maps = {1: (inner, 2 * language.width), 2: (2, inner)}
        return {GATE.format(layer, number): shape for layer in range(count - 1) for number, shape in maps.items()}

    def group_counts(self, budget: DepthBudget) -> tuple[int, ...]:
        """As `visual_exit`: nothing is evicted in front of the layer that the operator's groups name."""
        return whole_first_group(budget)

    def score(self, view: LayerView) -> Scores:
        """SnapKV's scores; behind an exit those of visual tokens fall below zero, in the same order."""
        attention = super().score(view).rows
        assert view.exited is not None
        return Scores(torch.where(view.exited & (view.media != TEXT), -1 / attention, attention))
