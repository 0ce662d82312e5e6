"""Sections `stts` and `vision_selector`: trained weights of the strategies of these names."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .section import Section

FileName = Annotated[str, Field(min_length=1)]


class Stts(Section):
    """The scorer of strategy `stts`.

    Attributes:
        scorer: a safetensors file, relative to the working directory; by default `stts/scorer.safetensors` beside the
            served checkpoint.
    """

    scorer: FileName | None = None


class VisionSelectorWeights(Section):
    """The weights of strategy `vision_selector`.

    Attributes:
        weights: a safetensors file, or a folder of them, relative to the working directory: the scorer alone or a
            checkpoint that contains it. Without it, the strategy is refused.
    """

    weights: FileName | None = None
