"""Section `feature_cache`: the vision tower's outputs of items seen before."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .section import Section


class FeatureCacheSize(Section):
    """Memory for the vision tower's outputs, so that another budget, question or strategy for a picture runs no tower.

    Attributes:
        max_bytes: memory of each worker, taken when the model is loaded and counted by vLLM as part of it; 0 keeps
            nothing. At a 7B model's hidden size of 3,584, 1 GiB has room for 149,000 visual tokens in bfloat16.
    """

    max_bytes: Annotated[int, Field(strict=True, ge=0)] = 0
