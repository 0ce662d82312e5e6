"""Sections `stts` and `vision_selector`: trained weights of the strategies of these names."""

from __future__ import annotations

from .section import Section


class Stts(Section):
    """The scorer of strategy `stts`.

    Attributes:
        scorer: a safetensors file, relative to the working directory; by default `stts/scorer.safetensors` beside the
            served checkpoint.
    """

    scorer: str | None = None


class VisionSelectorWeights(Section):
    """The weights of strategy `vision_selector`.

    Attributes:
        weights: a safetensors file, or a folder of them, relative to the working directory: the scorer alone or a
            checkpoint that contains it. Without it, the strategy is refused.
    """

    weights: str | None = None
