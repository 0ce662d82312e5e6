"""What a worker provides to KV strategies: one entry per signal, by its name in `vllm_prune.signals`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..signals import KvSignal

if TYPE_CHECKING:
    from .cached_request import CachedRequest
    from .compaction import Compactor


@dataclass(frozen=True)
class LayerSource:
    """Where the signals of one layer come from, at the compaction of one request.

    Attributes:
        compactor: of this worker.
        layer: index of the layer.
        request: what is compacted.
        slots: int64 [L], cache slots of its rows.
        window_slots: int64 [W], slots of the query store that hold its last W queries, in order.
        heads: KV heads of this rank.
    """

    compactor: Compactor
    layer: int
    request: CachedRequest
    slots: Tensor
    window_slots: Tensor
    heads: int


@dataclass(frozen=True)
class Provider:
    """How one signal reaches a strategy.

    Attributes:
        offered: whether this worker's model has it.
        provide: the fields of `LayerView` that hold it.
    """

    offered: Callable[[Compactor], bool]
    provide: Callable[[LayerSource], dict[str, Any]]


def _queries(source: LayerSource) -> dict[str, Any]:
    compactor, layer = source.compactor, source.layer
    queries = compactor.store.queries(layer, source.window_slots)
    logits = compactor.rows[layer].logits(queries, source.slots, float(compactor.layers[layer].impl.scale))
    return {"queries": queries, "logits": logits}


def _saliency(source: LayerSource) -> dict[str, Any]:
    # Norms are kept per slot, and rows that a compaction has moved stand in other slots.
    if source.layer in source.request.positions:
        return {}
    assert source.compactor.saliency is not None
    hidden, normed = source.compactor.saliency.at(source.layer, source.slots)
    return {"saliency": hidden.expand(source.heads, -1), "normed_saliency": normed.expand(source.heads, -1)}


def _coordinates(source: LayerSource) -> dict[str, Any]:
    # As above. A model with one position per token has no other coordinate to give.
    store = source.compactor.coordinates
    if source.layer in source.request.positions or store is None:
        return {}
    places, prompt = store.at(source.slots), source.request.prompt
    # Not recorded in decode steps; text goes on from the prompt's last token.
    since = torch.arange(1, places.shape[1] - prompt + 1, device=places.device)
    return {"coordinates": torch.cat([places[:, :prompt], places[:, prompt - 1 : prompt] + since], dim=1)}


def _moments(source: LayerSource) -> dict[str, Any]:
    sums, slot = source.compactor.prompt_queries, source.request.sum_slot
    assert sums is not None
    assert slot is not None
    return {"moments": sums.at(source.layer, slot)}


def _gates(source: LayerSource) -> dict[str, Any]:
    gates, prompt = source.compactor.gates, source.request.gated
    assert gates is not None
    assert prompt is not None
    return {"exited": gates.exited(source.layer, prompt)}


PROVIDERS: dict[KvSignal, Provider] = {
    "queries": Provider(lambda compactor: True, _queries),
    # Part of every view, and converted when a strategy calls it.
    "values": Provider(lambda compactor: True, lambda source: {}),
    "saliency": Provider(lambda compactor: compactor.saliency is not None, _saliency),
    "coordinates": Provider(lambda compactor: True, _coordinates),
    "moments": Provider(lambda compactor: compactor.prompt_queries is not None, _moments),
    "gates": Provider(lambda compactor: compactor.gates is not None, _gates),
    "rotation": Provider(
        lambda compactor: compactor.rotation is not None, lambda source: {"rotation": source.compactor.rotation}
    ),
}
"""The KV signals."""


def offers(compactor: Compactor) -> frozenset[KvSignal]:
    """Signals that strategies can have on this worker."""
    return frozenset(name for name, provider in PROVIDERS.items() if provider.offered(compactor))


def fields_of(wanted: Iterable[KvSignal], source: LayerSource) -> dict[str, Any]:
    """The fields of `LayerView` that hold the wanted signals."""
    fields: dict[str, Any] = {}
    for name in sorted(wanted):
        fields |= PROVIDERS[name].provide(source)
    return fields
