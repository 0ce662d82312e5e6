"""Whose budget an item has, as vLLM may send pictures and pieces of videos as one modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.multimodal.processing.inputs import ProcessorInputs

from ...grid import MODALITIES, Modality
from .item_cache import ItemCache
from .media_uuids import MissingMediaError

Places = dict[Modality, list[tuple[str, int]]]
"""Items by the modality whose budget they have: vLLM's modality of each, and its number there."""


def modality_of(sent_as: str, items: Any, index: int) -> Modality | None:
    """The modality whose budget an item has; None where it came by name only and its vLLM modality holds both.

    Args:
        sent_as: vLLM's modality.
        items: vLLM's parsed items of it.
        index: of the item.
    """
    for modality in MODALITIES:
        if sent_as == modality:
            return modality
    item = items.get(index)
    if item is None:
        return None
    return "image" if isinstance(item, Mapping) and item.get("type") == "image" else "video"


def remembered(sent_as: str, items: Any, index: int, base: str, cache: ItemCache) -> Modality | None:
    """The same, also for an item that was sent before.

    Args:
        sent_as, items, index: see `modality_of`.
        base: the item's cache key without a budget.
        cache: of this process.
    """
    if (modality := modality_of(sent_as, items, index)) is None:
        return cache.modality(base)
    if sent_as != modality:
        cache.keep_modality(base, modality)
    return modality


def places_of(
    inputs: ProcessorInputs, sent_as: Sequence[str], bases: Mapping[str, Sequence[str]], cache: ItemCache
) -> Places:
    """A request's items by whose budget they have, in the order in which they were sent.

    Args:
        inputs: of the processor.
        sent_as: vLLM's modalities of the family.
        bases: cache keys without a budget, by vLLM's modality.
        cache: of this process.

    Raises:
        MissingMediaError: an item came by name only and nobody here knows what it is.
    """
    places: Places = {modality: [] for modality in MODALITIES}
    for name in (name for name in sent_as if name in inputs.mm_data_items):
        for i, base in enumerate(bases[name]):
            modality = remembered(name, inputs.mm_data_items[name], i, base, cache)
            if modality is None:
                raise MissingMediaError(name, i, "whether it is a picture or a piece of a video is not known here")
            places[modality].append((name, i))
    return {modality: items for modality, items in places.items() if items}
