"""Modalities and grids: shared by budgets, strategies and adapters. Imports nothing heavy.

A visual token is one merged patch cell of an image or of a video frame, and one token of the language model.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
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


def bitmap(kept: Iterable[int], tokens: int) -> str:
    """Which visual tokens of an item are kept, in the form that clients get.

    Args:
        kept: indices of kept visual tokens in raster order, each in [0, tokens).
        tokens: visual tokens of the item, M.

    Returns:
        Base64 of one bit per visual token, row-major, the first in the most significant bit of the first byte.
    """
    flags = bytearray(-(-tokens // 8))
    for index in kept:
        flags[index >> 3] |= 0x80 >> (index & 7)
    return base64.b64encode(flags).decode()
