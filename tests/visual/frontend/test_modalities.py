"""Whose budget an item has where vLLM has one modality for pictures and pieces of videos."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems, VisionChunkProcessorItems

from vllm_prune.visual.frontend.item_cache import ItemCache
from vllm_prune.visual.frontend.media_uuids import MissingMediaError
from vllm_prune.visual.frontend.modalities import modality_of, places_of, remembered

PICTURE: dict[str, Any] = {"type": "image", "image": None, "uuid": None}
PIECE: dict[str, Any] = {"type": "video_chunk", "video_chunk": [], "uuid": None, "prompt": "", "video_idx": 0}


def inputs(*items: Any) -> Any:
    return SimpleNamespace(mm_data_items=MultiModalDataItems({"vision_chunk": VisionChunkProcessorItems(items)}))


def test_items_are_told_apart_by_their_type() -> None:
    places = places_of(
        inputs(PIECE, PICTURE, PIECE), ("vision_chunk",), {"vision_chunk": ["a", "b", "c"]}, ItemCache()
    )  # fmt: skip
    assert places == {"image": [("vision_chunk", 1)], "video": [("vision_chunk", 0), ("vision_chunk", 2)]}


def test_vllm_s_modality_says_it_for_all_others() -> None:
    request: Any = SimpleNamespace(mm_data_items=MultiModalDataItems({"image": ImageProcessorItems([None, None])}))
    assert places_of(request, ("image", "video"), {"image": ["a", "b"]}, ItemCache()) == {
        "image": [("image", 0), ("image", 1)]
    }
    assert modality_of("video", None, 3) == "video"


def test_an_item_that_comes_by_name_is_what_it_was() -> None:
    cache, bases = ItemCache(), {"vision_chunk": ["a"]}
    assert "video" in places_of(inputs(PIECE), ("vision_chunk",), bases, cache)
    assert places_of(inputs(None), ("vision_chunk",), bases, cache) == {"video": [("vision_chunk", 0)]}
    assert remembered("vision_chunk", VisionChunkProcessorItems([None]), 0, "b", cache) is None
    with pytest.raises(MissingMediaError, match="a picture or a piece of a video"):
        places_of(inputs(None), ("vision_chunk",), {"vision_chunk": ["b"]}, cache)
