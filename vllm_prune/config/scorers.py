"""Sections `stts`, `vision_selector` and `weights`: trained weights of strategies."""

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


class TrainedLayers(Section):
    """The weights of strategies whose layers others have trained, by the strategy's name.

    Each is a safetensors file, or a folder of them, relative to the working directory: the layers alone or a checkpoint
    that contains them. The strategies that have none are refused, and the server does not start with weights that do
    not fit its model.

    Attributes:
        cacovid: those of CaCoVID's policy.
        dyvte: DyVTE's gates, one behind each layer of the language model, for the KV cache.
        qtsplus: those of QTSplus's selector.
        vqtoken: those of VQToken's attention over a video's codebook.
    """

    cacovid: FileName | None = None
    dyvte: FileName | None = None
    qtsplus: FileName | None = None
    vqtoken: FileName | None = None
