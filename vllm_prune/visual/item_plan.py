"""The plan of one media item, which travels with it from the front end to the model.

vLLM carries named tensors per item; ours is `image_prune` or `video_prune`: UTF-8 JSON as uint8, empty
for an item that is not pruned. It stays on the CPU, so reading it never syncs a device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..budget.canonical import Part, VisualSpec

CUT_AFTER = 4
"""Blocks of the tower that see every cell where a request leaves `after` open and the tower is deep enough."""


def field_name(modality: str) -> str:
    """Name of the per-item field of a modality."""
    return f"{modality}_prune"


@dataclass(frozen=True)
class ItemPlan:
    """What has to be done to one item.

    Attributes:
        strategy: catalogue name.
        options: the strategy's options as canonical JSON.
        count: K, tokens kept of the item.
        seed: number derived from the item's content.
        per_frame: counts per frame, for families that write text between frames.
        indices: kept cells when the front end has already chosen them from pixels.
        key: names the item under its budget, for `KeptStore`; equal cache keys have equal ones.
        segments: for generic adapters the item's unpruned placeholder in run lengths, n for embedded tokens and -n for
            text; `per_frame` then has one count per embedded run.
        grid: for generic adapters frames, rows and columns of the item.
        marks: for generic adapters embedded tokens before and behind the visual tokens, which stay and do not count.
        text: token ids of the last user message's text, where the strategy reads it.
        content: names the item without its budget, for `FeatureCache`.
    """

    strategy: str
    options: str
    count: int
    seed: int
    per_frame: tuple[int, ...] | None = None
    indices: tuple[int, ...] | None = None
    key: str = ""
    segments: tuple[int, ...] | None = None
    grid: tuple[int, int, int] | None = None
    marks: tuple[int, int] = (0, 0)
    text: tuple[int, ...] | None = None
    content: str = ""

    def encode(self) -> Tensor:
        """uint8 [bytes]."""
        text = json.dumps(asdict(self), separators=(",", ":")).encode()
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)

    @property
    def cut(self) -> int | None:
        """Blocks of the vision tower that see every cell, where the cut is inside the tower; else None."""
        options = self.option_values
        if options.get("where") != "tower":
            return None
        after = options["after"]
        return CUT_AFTER if after is None else int(after)

    @property
    def attention_blocks(self) -> slice:
        """Which of the tower's blocks the strategy takes attention from, counted from the last."""
        options = self.option_values
        first, blocks = options.get("skip_blocks", 0), options.get("tower_blocks", 1)
        return slice(first, None if blocks is None else first + blocks)

    @property
    def positions(self) -> int:
        """Positions that a merged token carries."""
        return int(self.option_values.get("positions", 1))

    @property
    def option_values(self) -> dict[str, Any]:
        """Options as a dict."""
        return json.loads(self.options)


def with_cut(spec: VisualSpec, depth: int | None) -> VisualSpec:
    """A budget whose cuts inside the tower all say after which block, so that equal cuts have equal cache keys.

    Args:
        spec: canonical budget of a request, in which `after` may be open. A place that is still open is behind the
            tower, as nobody has said that this engine can cut inside it.
        depth: blocks of the model's tower; None where that is not known.
    """
    after = CUT_AFTER if depth is None else min(CUT_AFTER, depth - 1)
    return spec.mapped(lambda part: _with_cut(part, after))


def _with_cut(part: Part, after: int) -> Part:
    options = json.loads(part.options)
    if options.get("where") == "auto":
        return behind_tower(part)
    if options.get("where") != "tower" or options["after"] is not None:
        return part
    return part.with_options(after=after)


def behind_tower(part: Part) -> Part:
    """A budget that has left the place to the server, with the choice among the tower's outputs."""
    return part.with_options(where="embed", after=None)


def unpruned() -> Tensor:
    """Plan of an item that keeps everything."""
    return torch.empty(0, dtype=torch.uint8)


def decode(row: Tensor | None) -> ItemPlan | None:
    """Inverse of `ItemPlan.encode`; None for an item that keeps everything."""
    if row is None or not row.numel():
        return None
    raw = json.loads(bytes(row.tolist()))
    for key in ("per_frame", "indices", "segments", "grid", "marks", "text"):
        raw[key] = tuple(raw[key]) if raw[key] is not None else None
    return ItemPlan(**raw)


def plan_of(data: Mapping[str, Any], modality: str) -> ItemPlan | None:
    """Plan of an item from vLLM's keyword item (field elements with `.data`)."""
    element = data.get(field_name(modality))
    return decode(element.data) if element is not None else None
