"""Rotary embedding of transformers with a position for every frequency of a token, not one per axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def axes_of(text_config: Any) -> list[int]:
    """The axis of each frequency in the two families of Qwen-VL, as transformers lays them out."""
    sections = text_config.rope_parameters["mrope_section"]
    axes = [axis for axis, size in enumerate(sections) for _ in range(size)]
    if "qwen3" in text_config.model_type:
        axes = [0] * len(axes)
        for axis in (1, 2):
            places = range(axis, 3 * sections[axis], 3)
            axes[axis : 3 * sections[axis] : 3] = [axis] * len(places)
    return axes


def of_members(positions: Tensor, members: Tensor, axes: Sequence[int]) -> Tensor:
    """Position of every frequency, int64 [K, F].

    Args:
        positions: int64 [axes, N], of a prompt.
        members: int64 [K, P], prompt slots.
        axes: of the frequencies.
    """
    table = torch.zeros(len(members), len(axes), dtype=torch.int64)
    for axis in set(axes):
        places = torch.tensor([i for i, other in enumerate(axes) if other == axis])
        for part, member in zip(places.tensor_split(members.shape[1]), members.unbind(1), strict=True):
            table[:, part] = positions[axis, member][:, None]
    return table


@contextmanager
def rotating(language: Any, table: Tensor | None) -> Iterator[None]:
    """Prompts of as many tokens as a table has are rotated by it.

    Args:
        language: a language model of transformers, for its prefill in one step.
        table: int64 [N, F]; None to leave everything as it is.
    """
    if table is None:
        yield
        return
    rotary = language.rotary_emb
    original = rotary.forward

    def forward(hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        if position_ids.shape[-1] != len(table):
            result: tuple[Tensor, Tensor] = original(hidden, position_ids)
            return result
        angles = (table.double() * rotary.inv_freq.double())[None].repeat(1, 1, 2)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)

    rotary.forward = forward
    try:
        yield
    finally:
        del rotary.forward
