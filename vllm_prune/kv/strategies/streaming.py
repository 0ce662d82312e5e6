"""StreamingLLM: the first tokens and the latest ones."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from .base import KvStrategy, LayerView, NoKvOptions, Scores


class StreamingOptions(NoKvOptions):
    """Options of `streaming`.

    Attributes:
        sinks: first tokens of the prompt that are always kept.
    """

    sinks: Annotated[int, Field(ge=0, le=1024)] = 4


class Streaming(KvStrategy):
    """Position decides; content does not matter."""

    name = "streaming"
    paper = "StreamingLLM, arXiv 2309.17453, section 3"
    summary = "the first tokens and the latest"
    Options = StreamingOptions
    options: StreamingOptions

    def score(self, view: LayerView) -> Scores:
        """Position, with the sinks above all."""
        sinks = view.positions < self.options.sinks
        return Scores(torch.where(sinks, float(1 << 30), view.positions.float()))
