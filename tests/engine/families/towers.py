"""Features of one item from transformers' tower, of the fields that vLLM's stock processor gives it; [M, width]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def internvl(hf: Any, modality: str, fields: dict[str, Any]) -> Tensor:
    """All tiles or frames, one after the other."""
    pixels = fields["pixel_values_flat" if modality == "image" else "pixel_values_flat_video"]
    rows: Tensor = hf.get_image_features(
        pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
    ).pooler_output
    return rows.flatten(0, 1)


def minicpmv4_6(hf: Any, modality: str, fields: dict[str, Any]) -> Tensor:
    """The picture and its slices, or the frames of a video; padded to one length by vLLM, in a row in transformers."""
    prefix = "" if modality == "image" else "video_"
    sizes = fields[f"{prefix}tgt_sizes"]
    side = hf.config.vision_config.patch_size
    slices = zip(fields[f"{prefix}pixel_values"], sizes.prod(-1).tolist(), strict=True)
    pixels = torch.cat([each[..., : count * side] for each, count in slices], dim=-1)
    return torch.cat(list(hf.model.get_image_features(pixels[None], sizes).pooler_output))


def gemma4(hf: Any, modality: str, fields: dict[str, Any]) -> Tensor:
    """A picture, or the frames of a video as pictures; patches of padding give no token."""
    if modality == "image":
        pixels, places = fields["pixel_values"][None], fields["pixel_position_ids"][None]
    else:
        pixels, places = fields["pixel_values_videos"], fields["pixel_position_ids_videos"]
    return torch.cat(list(hf.model.get_image_features(pixels, places).pooler_output))


def step3p7(hf: Any, modality: str, fields: dict[str, Any]) -> Tensor:
    """The windows of a picture and then the whole of it."""
    windows, count = fields["patch_pixel_values"], int(fields["num_patches"])
    rows: Tensor = hf.model.get_image_features(
        fields["pixel_values"][None], windows if count else None, [count]
    ).pooler_output[0]
    return rows
