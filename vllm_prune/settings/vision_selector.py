"""The section `vision_selector`: the trained weights of the strategy of that name."""

from __future__ import annotations

from . import Section


class VisionSelectorWeights(Section):
    """Where the weights are.

    Attributes:
        weights: a safetensors file, or a folder of them, relative to the working directory: the scorer alone or a
            checkpoint that contains it. Without it, the strategy is refused.
    """

    weights: str | None = None
