"""Several positions for a merged token: PPE (arXiv 2510.22936, section 3).

The frequencies of every axis are divided into P parts, and part j of a merged token is rotated by the coordinates of
the j-th of its members. Each step composes the rows of its merged tokens behind the positions of the rotary tables, see
`rotary`, and tells the language model these rows' numbers. They are needed in that step only, as keys are cached
rotated. The runner's own positions keep the cell that a token is merged into: what it drafts, and what a strategy for
the cache takes for a token's coordinates, is read from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.utils.torch_utils import async_tensor_h2d

from ...vllm_compat import cuda_graphs
from .rotary import layouts_of, make_room, obstacle, parts_of, positions_in, ropes_of


@dataclass
class _Layout:
    """Rotary embeddings whose frequencies have the same axes.

    Attributes:
        axes: of each frequency.
        axis: the same, int64 [F], on the device.
        ropes: modules of vLLM.
        relative: int32 [capacity, F], what is added to a token's position, zeros for those that are not merged.
        parts: int64 [F] by P, the part of each frequency.
    """

    axes: tuple[int, ...]
    axis: Tensor
    ropes: list[Any]
    relative: Tensor
    parts: dict[int, Tensor]

    def spread(self, members: Tensor) -> Tensor:
        """Coordinates of members, int64 [3, n, P], over the frequencies, int32 [n, F]."""
        count = members.shape[2]
        if count not in self.parts:
            parts = parts_of(self.axes, count)
            self.parts[count] = async_tensor_h2d(parts, device=members.device, dtype=torch.int64)
        return members[self.axis, :, self.parts[count]].t().int()

    def compose(self, positions: Tensor, base: int) -> None:
        """Write a step's rows from `base` on.

        Args:
            positions: int64 [3, n], of the origins of runs for merged tokens.
            base: the first row.
        """
        count = positions.shape[1]
        # A step without a request is run on what the one before has left, so its sums may lead beyond the table.
        index = (positions[self.axis].t() + self.relative[:count]).clamp_max(base - 1)
        for rope in self.ropes:
            cos, sin = rope.cos_sin_cache.chunk(2, dim=1)
            for half in (cos, sin):
                half[base : base + count] = half.gather(0, index)


class MemberPositions:
    """Rows of merged tokens in one step, in memory whose address never changes, as with `StepOffsets`.

    Args:
        language: vLLM's language model, before anything is compiled or captured.
        capacity: most tokens of a step, padding included.
        one_row: whether it takes one position per token.
        latent: whether it has latent attention (MLA).

    Attributes:
        obstacle: why tokens of this model have one position each; None where merged ones can have several.
        active: whether the step at hand has such tokens.
        pieces: whether pieces of the language model may be captured into CUDA graphs.
    """

    def __init__(self, language: nn.Module, capacity: int, one_row: bool = False, latent: bool = False) -> None:
        self.obstacle = obstacle(language, latent)
        self.active = self.pieces = False
        self._layouts: list[_Layout] = []
        self._handed: Tensor | None = None
        if self.obstacle is not None:
            return
        ropes = ropes_of(language)
        self._base = max(positions_in(rope) for rope in ropes)
        for rope in ropes:
            make_room(rope, self._base + capacity)
        device = ropes[0].cos_sin_cache.device
        self.pieces = device.type == "cuda"
        for axes, alike in layouts_of(ropes, one_row):
            relative = torch.zeros(capacity, len(axes), dtype=torch.int32, device=device)
            axis = async_tensor_h2d(list(axes), device=device, dtype=torch.int64)
            self._layouts.append(_Layout(axes, axis, alike, relative, {}))
        self._merged = torch.zeros(capacity, dtype=torch.bool, device=device)
        self._rows = torch.arange(self._base, self._base + capacity, device=device)

    def clear(self) -> None:
        """Forget the previous step."""
        if self.active:
            self._merged.zero_()
            for layout in self._layouts:
                layout.relative.zero_()
            self.active = False

    def write(self, members: Sequence[Tensor | None], lengths: Sequence[int], is_media: Tensor) -> None:
        """Take the members of this step's media tokens.

        Args:
            members: per slice of an item int64 [3, n, P], coordinates relative to the origin of the run, or None.
            lengths: tokens of each slice.
            is_media: bool [tokens of the step], True where an embedding goes.

        Raises:
            RuntimeError: tokens of this model have one position each.
        """
        if all(part is None for part in members):
            return
        if self.obstacle is not None:
            raise RuntimeError(f"several positions for a merged token, but {self.obstacle}; use positions: 1")
        device, slices = self._merged.device, list(zip(members, lengths, strict=True))
        mask = async_tensor_h2d(is_media, device=device) if is_media.is_cpu else is_media
        merged = [torch.full((n,), part is not None, device=device) for part, n in slices]
        self._merged[: len(mask)].masked_scatter_(mask, torch.cat(merged))
        for layout in self._layouts:
            width = len(layout.axes)
            spread = [
                torch.zeros(n, width, dtype=torch.int32, device=device)
                if part is None
                else layout.spread(part.to(device))
                for part, n in slices
            ]
            layout.relative[: len(mask)].masked_scatter_(mask[:, None].expand(-1, width), torch.cat(spread))
        self.active = True

    @property
    def _composes(self) -> bool:
        return bool(self._layouts) and (self.active or cuda_graphs.capturing())

    def compose(self, positions: Tensor) -> None:
        """Compose the rows of a step from int64 [3, n], to which the step's offsets are not yet added."""
        if self._composes:
            for layout in self._layouts:
                layout.compose(positions, self._base)

    def hand_on(self, positions: Tensor) -> Tensor:
        """What the language model is told, int64 [3, n], for the runner's complete positions, which stay as they are.

        A captured piece of a model reads the memory that it has seen at its capture, so where there may be some that
        memory is ours in every step, unless the whole model is captured.
        """
        if not self._layouts:
            return positions
        if self._composes:
            count = positions.shape[1]
            return self._buffer_for(positions).copy_(torch.where(self._merged[:count], self._rows[:count], positions))
        if self.pieces and not cuda_graphs.stream_capturing():
            return self._buffer_for(positions).copy_(positions)
        return positions

    def _buffer_for(self, positions: Tensor) -> Tensor:
        """Memory of ours in the shape and with the strides of the runner's positions."""
        rows, count = positions.shape
        wide = max(positions.stride(0), count)
        if self._handed is None or self._handed.shape != (rows, wide):
            self._handed = torch.zeros(rows, wide, dtype=positions.dtype, device=positions.device)
        return self._handed[:, :count]
