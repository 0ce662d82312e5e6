"""One compaction, carried out: score the rows of every layer, move the kept ones to their new blocks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..budget.kv import KvSpec
from ..catalogue import KV
from .cache import Blocks, CacheRows
from .commands import Compaction
from .query_window import QueryStore
from .saliency import SaliencyStore
from .strategies.base import TEXT, KvStrategy, LayerView


@dataclass
class CachedRequest:
    """What a worker remembers of a request with a KV budget.

    Attributes:
        spec: its budget.
        strategy: the strategy, with its options.
        prompt: prompt tokens.
        media: int64 [prompt], media item of each prompt token, `TEXT` for text.
        seed: depends on the prompt only.
        lent: rows of the query store, W of them.
        evicted: logical length minus cached length.
        positions: per layer int64 [H, C], what the rows kept by the last compaction hold; empty before the first.
        carried: per layer, what the strategy keeps with those rows.
    """

    spec: KvSpec
    strategy: KvStrategy
    prompt: int
    media: Tensor
    seed: int
    lent: list[int]
    evicted: int = 0
    positions: list[Tensor] = field(default_factory=list)
    carried: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def window(self) -> int:
        """W."""
        return len(self.lent)

    def observed_from(self) -> int:
        """First position whose query may belong to the next window."""
        count = self.spec.count(self.prompt)
        if self.evicted == 0 and count < self.prompt:
            return self.prompt - self.window
        return self.evicted + count + self.spec.buffer + 1 - self.window

    def lent_for(self, positions: range) -> list[int]:
        """Rows of the query store for consecutive positions."""
        return [self.lent[position % self.window] for position in positions]


def remember(spec: KvSpec, prompt: Sequence[int], features: Sequence[Any], store: QueryStore) -> CachedRequest:
    """Start to follow a request.

    Args:
        spec: its budget.
        prompt: prompt token ids, placeholders included.
        features: vLLM's multimodal features of the request.
        store: lends the window's rows.
    """
    media = torch.full((len(prompt),), TEXT, dtype=torch.int64)
    for index, feature in enumerate(sorted(features, key=lambda one: one.mm_position.offset)):
        place = feature.mm_position
        inside = media[place.offset : place.offset + place.length]
        inside[slice(None) if place.is_embed is None else torch.as_tensor(place.is_embed, device="cpu")] = index
    digest = hashlib.blake2b(torch.tensor(list(prompt)).numpy().tobytes(), digest_size=8).digest()
    lent = store.lend(spec.window_of(spec.count(len(prompt))))
    strategy = KV.create(spec.strategy, json.loads(spec.options))
    return CachedRequest(spec, strategy, len(prompt), media, int.from_bytes(digest) >> 1, lent)


class Compactor:
    """Compacts requests on one worker.

    Args:
        layers: vLLM's attention layers in order, their caches bound.
        rows: access to their caches.
        store: the windows' queries.
        saliency: residual norms, None where the model has no input norms to listen to.
        rotation: [P, D] cosines and sines of the rotary embedding, None where it has another form.
        block_size: slots of a block of the scheduler.
        head_offset: number of this rank's first KV head.
    """

    def __init__(
        self,
        layers: list[Any],
        rows: list[CacheRows],
        store: QueryStore,
        saliency: SaliencyStore | None,
        rotation: Tensor | None,
        block_size: int,
        head_offset: int = 0,
    ) -> None:
        self.layers, self.rows, self.store, self.saliency = layers, rows, store, saliency
        self.rotation, self.block_size, self.head_offset = rotation, block_size, head_offset
        self.device = layers[0].kv_cache.device

    def offers(self) -> frozenset[str]:
        """Signals that strategies can ask for here."""
        optional = {"saliency": self.saliency, "rotation": self.rotation}
        return frozenset({"queries", "values", *(name for name, found in optional.items() if found is not None)})

    @torch.inference_mode()
    def run(self, command: Compaction, request: CachedRequest) -> None:
        """Carry out a command and remember what was kept."""
        source = Blocks.of(command.source, command.rows, self.block_size, self.device)
        target = Blocks.of(command.target, command.keep, self.block_size, self.device)
        end = command.rows + command.evicted
        lent = request.lent_for(range(end - request.window, end))
        positions, carried = [], []
        for index, rows in enumerate(self.rows):
            keys, values = rows.read(source)
            view = self._view(index, command, request, keys, values, source.slots, lent)
            kept, scores = request.strategy.select(view, command.keep)
            rows.move(kept, keys, values, source, target)
            positions.append(view.positions.gather(1, kept))
            carried.append({name: found.gather(1, kept) for name, found in scores.carry.items()})
        request.positions, request.carried = positions, carried
        request.evicted = command.evicted_after

    def _view(
        self,
        index: int,
        command: Compaction,
        request: CachedRequest,
        keys: Tensor,
        values: Tensor,
        source: Tensor,
        lent: list[int],
    ) -> LayerView:
        heads, first = len(keys), not request.positions
        positions = self._positions(index, command, request, heads)
        wanted = request.strategy.wanted()
        saliency = None
        if "saliency" in wanted and first:
            assert self.saliency is not None
            saliency = self.saliency.at(index, source).expand(heads, -1)
        scale = float(self.layers[index].impl.scale)
        queries = self.store.queries(index, lent) if "queries" in wanted else None
        return LayerView(
            keys=keys.float(),
            values=values.float,
            positions=positions,
            media=self._media(request, positions),
            layer=index,
            gamma=request.spec.gamma(request.prompt),
            window=request.window,
            scale=scale,
            queries=queries,
            logits=self.rows[index].logits(queries, source, scale) if queries is not None else None,
            saliency=saliency,
            rotation=self.rotation if "rotation" in wanted else None,
            carried=self._carried(index, command, request),
            first=first,
            head_offset=self.head_offset,
            seed=request.seed,
        )

    def _positions(self, index: int, command: Compaction, request: CachedRequest, heads: int) -> Tensor:
        kept = request.positions[index] if request.positions else None
        start = 0 if kept is None else kept.shape[1]
        since = torch.arange(start + command.evicted, command.rows + command.evicted, device=self.device)
        since = since.expand(heads, -1)
        return since if kept is None else torch.cat([kept, since], dim=1)

    def _carried(self, index: int, command: Compaction, request: CachedRequest) -> dict[str, Tensor]:
        if not request.carried:
            return {}
        found = request.carried[index].items()
        return {name: torch.nn.functional.pad(kept, (0, command.rows - kept.shape[1])) for name, kept in found}

    def _media(self, request: CachedRequest, positions: Tensor) -> Tensor:
        media = request.media.to(positions.device)
        return torch.where(positions < request.prompt, media[positions.clamp(max=request.prompt - 1)], TEXT)
