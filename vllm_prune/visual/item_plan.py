"""The row that travels with every media item from the front end to the model.

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
    """

    strategy: str
    options: str
    count: int
    seed: int
    per_frame: tuple[int, ...] | None = None
    indices: tuple[int, ...] | None = None
    key: str = ""

    def encode(self) -> Tensor:
        """uint8 [bytes]."""
        text = json.dumps(asdict(self), separators=(",", ":")).encode()
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)

    @property
    def cut(self) -> int | None:
        """Blocks of the vision tower that see every cell, where the cut is inside the tower; else None."""
        options = self.option_values
        return int(options["after"]) if options.get("where") == "tower" else None

    @property
    def option_values(self) -> dict[str, Any]:
        """Options as a dict."""
        return json.loads(self.options)


def unpruned() -> Tensor:
    """Row of an item that keeps everything."""
    return torch.empty(0, dtype=torch.uint8)


def decode(row: Tensor | None) -> ItemPlan | None:
    """Inverse of `ItemPlan.encode`; None for an item that keeps everything."""
    if row is None or not row.numel():
        return None
    raw = json.loads(bytes(row.tolist()))
    for key in ("per_frame", "indices"):
        raw[key] = tuple(raw[key]) if raw[key] is not None else None
    return ItemPlan(**raw)


def plan_of(data: Mapping[str, Any], modality: str) -> ItemPlan | None:
    """Plan of an item from vLLM's keyword item (field elements with `.data`)."""
    element = data.get(field_name(modality))
    return decode(element.data) if element is not None else None
