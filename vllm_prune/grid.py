"""Modalities and grids: shared by budgets, strategies and adapters. Imports nothing heavy.

A visual token is one merged patch cell of an image or of a video frame, and one token of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Modality = Literal["image", "video"]

MODALITIES: tuple[Modality, ...] = ("image", "video")


@dataclass(frozen=True)
class Grid:
    """Visual tokens of one item: `frames` x `rows` x `cols`, in raster order."""

    frames: int
    rows: int
    cols: int

    @property
    def per_frame(self) -> int:
        """Visual tokens of one frame."""
        return self.rows * self.cols

    @property
    def tokens(self) -> int:
        """Visual tokens of the whole item, M."""
        return self.frames * self.rows * self.cols
