"""Visual tokens of media items before pruning, as vLLM's processor counts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def largest_items(engine_client: Any) -> Mapping[str, int]:
    """Most visual tokens of one item, by modality, before pruning; empty for a model without media."""
    processor = getattr(engine_client.renderer, "mm_processor", None)
    if processor is None:
        return {}
    counts = dict.fromkeys(processor.info.allowed_mm_limits, 1)
    largest = processor.info.get_mm_max_tokens_per_item(engine_client.model_config.max_model_len, counts)
    return {modality: tokens for modality, tokens in (largest or {}).items() if tokens}


def image_sizer(engine_client: Any) -> Callable[[int, int], int] | None:
    """Visual tokens of an image before pruning, from width and height; None for a model without an adapter,
    and for one whose adapter would have to process the image.
    """
    processor = getattr(engine_client.renderer, "mm_processor", None)
    if processor is None or not getattr(processor, "exact_image_sizes", False):
        return None
    sizer: Callable[[int, int], int] = processor.image_tokens
    return sizer
