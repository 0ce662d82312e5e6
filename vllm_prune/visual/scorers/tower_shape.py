"""Sizes of a vision tower, from the configuration of any family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOLMO2_SIDE = 3
"""Patches per side of a cell in Molmo2's videos. Its processor decides and is checked; the configuration is silent."""


@dataclass(frozen=True)
class TowerShape:
    """What a trained scorer has to fit.

    Attributes:
        width: hidden size.
        merge: patches per side of a cell.
        depth: blocks that run; None where the configuration does not say.
        out: hidden size of the language model that its cells go to; None likewise.
        whole: blocks that attend to whole frames; None likewise.
    """

    width: int
    merge: int
    depth: int | None
    out: int | None
    whole: int | None = None


def tower_shape(hf_config: Any) -> TowerShape | None:
    """Shape of a model's vision tower; None where it has none that is known here."""
    vision = getattr(hf_config, "vision_config", None)
    if vision is not None and hasattr(vision, "spatial_merge_size"):
        depth, out = getattr(vision, "depth", None), getattr(vision, "out_hidden_size", None)
        whole = getattr(vision, "fullatt_block_indexes", None)
        blocks = depth if depth is None or whole is None else sum(number < depth for number in whole)
        return TowerShape(vision.hidden_size, vision.spatial_merge_size, depth, out, blocks)
    vit, adapter = getattr(hf_config, "vit_config", None), getattr(hf_config, "adapter_config", None)
    if vit is None or adapter is None:
        return None
    # Blocks above the last one whose features are used are never built.
    layers = vit.num_hidden_layers
    depth = 1 + max(layer if layer >= 0 else layer + layers for layer in adapter.vit_layers)
    depth = min(depth, layers)
    return TowerShape(vit.hidden_size, MOLMO2_SIDE, depth, adapter.text_hidden_size, depth)
