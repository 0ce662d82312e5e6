"""M-RoPE positions of kept tokens.

A prompt position of a pruned item is first given the position of the item's (or the frame's) origin.
The kept token's own (t, h, w) relative to that origin travels with its embedding as six extra columns
and is added to the positions of the step in which the embedding is placed. Text advances by the
unpruned extent, so it never depends on which tokens were kept and prefix-cache hits stay right.
A merged token may carry the coordinates of several of its members behind these, see `member_positions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.utils.torch_utils import async_tensor_h2d

from ...vllm_compat import cuda_graphs

COLUMNS = 6
# Digits up to 255 are exact in bfloat16 and float16; whole positions above 256 are not.
BASE = 256


def grid_positions(frames: int, rows: int, cols: int, frame_step: float = 1.0) -> Tensor:
    """Relative (t, h, w) of every cell, int64 [3, frames * rows * cols], raster order.

    Args:
        frames, rows, cols: the merged grid.
        frame_step: temporal positions per frame; the product is truncated as the model's authors do.
    """
    grid = np.indices((frames, rows, cols))
    if frame_step != 1.0:
        grid[0] = (grid[0] * frame_step).astype(np.int64)
    return torch.from_numpy(grid.reshape(3, -1))


def attach(embeddings: Tensor, relative: Tensor, members: Tensor | None = None) -> Tensor:
    """Append the position columns: [K, D] and int64 [3, K] give [K, D + 6].

    Args:
        embeddings: of kept tokens.
        relative: their coordinates.
        members: int64 [3, K, P], those of the tokens merged into them; 6 * P more columns.
    """
    coordinates = relative.t()
    parts = [coordinates] if members is None else [coordinates, members.transpose(0, 1).flatten(1)]
    digits = [digit for part in parts for digit in (part // BASE, part % BASE)]
    return torch.cat([embeddings, torch.cat(digits, dim=1).to(embeddings.device, embeddings.dtype)], dim=1)


def detach(rows: Tensor, width: int) -> tuple[Tensor, Tensor | None]:
    """Split rows of an encoder output.

    Args:
        rows: [n, width] of an unpruned item, [n, width + 6] or more of a pruned one.
        width: columns of the model's own encoder output.

    Returns:
        [n, width] and int64 [3, n], or None where the item was not pruned.
    """
    if rows.shape[1] == width:
        return rows, None
    digits = rows[:, width : width + COLUMNS].long().t()
    return rows[:, :width], digits[:3] * BASE + digits[3:]


def members_of(rows: Tensor, width: int) -> Tensor | None:
    """Coordinates of the members that rows of an encoder output carry, int64 [3, n, P]; None where they carry none."""
    columns = rows.shape[1] - width - COLUMNS
    if columns <= 0:
        return None
    high, low = rows[:, width + COLUMNS :].long().reshape(len(rows), 2, 3, columns // COLUMNS).unbind(1)
    return (high * BASE + low).transpose(0, 1)


class StepOffsets:
    """Offsets added to the positions of one step, in a buffer whose address never changes.

    CUDA graphs that capture the addition replay it with whatever the buffer holds, zeros for a step
    without media.
    """

    def __init__(self, capacity: int, device: torch.device | None = None) -> None:
        self.buffer = torch.zeros(3, capacity, dtype=torch.int64, device=device)
        self.active = False

    def clear(self) -> None:
        """Forget the previous step."""
        if self.active:
            self.buffer.zero_()
            self.active = False

    def write(self, relative: Sequence[Tensor | None], lengths: Sequence[int], is_media: Tensor) -> None:
        """Place the offsets of this step's media tokens.

        Args:
            relative: per slice of an item int64 [3, n] or None, in prompt order.
            lengths: tokens of each slice.
            is_media: bool [tokens of the step], True where an embedding goes.
        """
        if all(part is None for part in relative):
            return
        device = self.buffer.device
        parts = [
            torch.zeros(3, n, dtype=torch.int64, device=device) if part is None else part.to(device)
            for part, n in zip(relative, lengths, strict=True)
        ]
        # vLLM's V1 runner has this mask on the host, V2 on the device.
        mask = async_tensor_h2d(is_media, device=device) if is_media.is_cpu else is_media
        self.buffer[:, : len(mask)].masked_scatter_(mask.expand(3, -1), torch.cat(parts, dim=1))
        self.active = True

    def apply(self, positions: Tensor) -> None:
        """Add the offsets in place to int64 [3, n]; n may exceed the step by padding."""
        if self.active or cuda_graphs.capturing():
            positions.add_(self.buffer[:, : positions.shape[1]])


@dataclass(frozen=True)
class Run:
    """Consecutive media slots of a prompt that share an origin.

    Attributes:
        slots: int64 [n] prompt indices, ascending; may be empty for a frame that keeps nothing.
        start: prompt index at which the text before the run ends.
        extent: how far the run advances the text positions that follow.
        relative: int64 [3, n] relative positions for an unpruned run, None for a pruned one.
    """

    slots: np.ndarray
    start: int
    extent: int
    relative: Tensor | None


def lay_out(length: int, runs: Sequence[Run]) -> tuple[Tensor, int]:
    """Positions of a whole prompt.

    Args:
        length: prompt tokens, media placeholders included.
        runs: media runs in prompt order.

    Returns:
        int64 [3, length] and delta, the last position + 1 - length. Slots of pruned runs hold the origin.
    """
    positions = torch.zeros(3, length, dtype=torch.int64)
    cursor, following = 0, 0
    for run in runs:
        text = run.start - cursor
        positions[:, cursor : run.start] = torch.arange(text) + following
        following += text
        if len(run.slots):
            positions[:, run.slots] = following if run.relative is None else run.relative + following
        following += run.extent
        cursor = run.start + len(run.slots)
    positions[:, cursor:] = torch.arange(length - cursor) + following
    return positions, following - cursor


def slots_of(feature: Any) -> np.ndarray:
    """Prompt indices that take an embedding of an item, int64 [n]; `feature` is vLLM's feature spec of it."""
    position = feature.mm_position
    if position.is_embed is None:
        return np.arange(position.offset, position.offset + position.length)
    return position.offset + np.flatnonzero(position.is_embed.numpy())
