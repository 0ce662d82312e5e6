"""Cutting cells inside a vision tower: the blocks after the cut run on the kept cells alone.

Attention with cumulative sequence lengths needs no padding, so packing survivors is leaving the others out and
counting anew. STTS (arXiv 2603.18004, section 3) cuts in the same place, by learned scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Survivors:
    """The cells of a tower's batch that go on. How many is known beforehand, so nothing waits for a device.

    Attributes:
        places: int64 [K], their places in the tower's own order, ascending.
        unit: patches of a cell, which lie side by side.
        before: int64 [cells + 1], patches that go on in front of each cell.
    """

    places: Tensor
    unit: int
    before: Tensor

    @classmethod
    def of(cls, places: Tensor, cells: int, unit: int) -> Survivors:
        """Survivors at ascending places among `cells` cells."""
        alive = torch.zeros(cells, dtype=torch.int64, device=places.device).index_fill(0, places, 1)
        return cls(places, unit, pad(alive.cumsum(0), (1, 0)) * unit)

    def patches(self, rows: Tensor) -> Tensor:
        """Rows of their patches: [cells * unit, ...] to [K * unit, ...]."""
        return rows.view(len(self.before) - 1, self.unit, *rows.shape[1:])[self.places].flatten(0, 1)

    def offsets(self, offsets: Tensor) -> Tensor:
        """Cumulative lengths of the same sequences after the cut; some may be empty."""
        return self.before[offsets.long() // self.unit].to(offsets.dtype)

    def metadata(self, meta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tower's metadata after the cut. The largest lengths stay: upper bounds for what is left."""
        few = {name: value for name, value in meta.items() if name.startswith("max_")}
        for name, value in meta.items():
            if name.startswith("rotary"):
                few[name] = self.patches(value)
            elif name.startswith("cu_"):
                few[name] = self.offsets(value)
        return few


def pack_offsets(memory: Tensor, offsets: Tensor) -> None:
    """Copy cumulative lengths into memory of a fixed size: empty sequences go behind the others. Nothing waits.

    Args:
        memory: [N + 1], where N is not below the number of sequences that are not empty.
        offsets: of any number of sequences, from 0, ascending.
    """
    memory.copy_(offsets[-1:].expand_as(memory))
    memory[:1] = 0
    # An empty sequence writes the end of the one before it, which stands there already.
    memory.index_copy_(0, (offsets.diff() > 0).cumsum(0), offsets[1:])


@dataclass(frozen=True)
class Group:
    """Whole frames that go through the dense blocks together.

    Attributes:
        thw: frames, height and width in patches of its items, or parts of items.
        first, last: range of its patches in the batch.
    """

    thw: list[list[int]]
    first: int
    last: int


def frame_groups(thw: Sequence[Sequence[int]], most: int) -> list[Group]:
    """Split a batch by frames: no attention of a tower crosses them, so each group may go alone.

    Args:
        thw: frames, height and width in patches of each item.
        most: patches of a group; one frame is the least.
    """
    groups: list[Group] = []
    parts: list[list[int]] = []
    first = last = 0
    for frames, height, width in thw:
        left = frames
        while left:
            fitting = (most - (last - first)) // (height * width)
            if parts and fitting < 1:
                groups.append(Group(parts, first, last))
                parts, first = [], last
                continue
            taken = min(left, max(1, fitting))
            parts.append([taken, height, width])
            last += taken * height * width
            left -= taken
    return [*groups, Group(parts, first, last)]


def joined(metas: Sequence[Mapping[str, Any]], groups: Sequence[Group], unit: int) -> dict[str, Tensor]:
    """Metadata of a batch from that of its groups."""
    merged: dict[str, Tensor] = {}
    for name in metas[0]:
        values = [meta[name] for meta in metas]
        if name.startswith("cu_"):
            # Every group starts at zero.
            ends = [value[1:] + group.first for value, group in zip(values, groups, strict=True)]
            merged[name] = torch.cat([values[0][:1], *ends])
        elif name.startswith("rotary"):
            merged[name] = torch.cat(values)
        elif name.startswith("max_"):
            merged[name] = torch.stack(values).amax(0)
        elif name == "reverse_indices":
            starts = (group.first // unit for group in groups)
            merged[name] = torch.cat([value + start for value, start in zip(values, starts, strict=True)])
    return merged


def runs(offsets: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Runs of whole sequences between ascending offsets, first and last patch of each.

    Args:
        offsets: from 0; equal ones are empty sequences, which need no run.
        most: patches of a run; one sequence is the least.
    """
    spans, first, last = [], 0, 0
    for end in offsets:
        if end - first > most and last > first:
            spans.append((first, last))
            first = last
        last = end
    return [*spans, (first, last)] if last > first else spans


def part(meta: Mapping[str, Tensor], first: int, last: int) -> dict[str, Tensor]:
    """Metadata of a run of whole sequences. The largest lengths stay: upper bounds for what is left."""
    sliced = dict(meta)
    for name, value in meta.items():
        if name.startswith("rotary"):
            sliced[name] = value[first:last]
        elif name.startswith("cu_"):
            sliced[name] = value[(value >= first) & (value <= last)] - first
    return sliced


class Rows:
    """Rows of all patches of a batch, filled group by group; a batch of one group is not copied."""

    def __init__(self, total: int) -> None:
        self._total = total
        self.whole: Tensor | None = None

    def put(self, group: Group, rows: Tensor) -> None:
        """Rows of a group."""
        if len(rows) == self._total:
            self.whole = rows
            return
        if self.whole is None:
            self.whole = rows.new_empty(self._total, *rows.shape[1:])
        self.whole[group.first : group.last] = rows

    def of(self, group: Group) -> Tensor:
        """Rows of a group."""
        assert self.whole is not None
        return self.whole[group.first : group.last]

    def take(self) -> Tensor:
        """All rows; they are not kept here any longer."""
        whole, self.whole = self.whole, None
        assert whole is not None
        return whole


def in_groups(rows: Tensor, groups: Sequence[Group], unit: int) -> Iterator[Tensor]:
    """Rows of cells, split by group."""
    yield from rows.split([(group.last - group.first) // unit for group in groups])
