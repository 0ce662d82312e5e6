"""Features of one item from transformers' tower, of the fields that vLLM's stock processor gives it; [M, width]."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def internvl(hf: Any, modality: str, fields: dict[str, Any]) -> Tensor:
    """All tiles or frames, one after the other."""
    pixels = fields["pixel_values_flat" if modality == "image" else "pixel_values_flat_video"]
    rows: Tensor = hf.get_image_features(
        pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
    ).pooler_output
    return rows.flatten(0, 1)
