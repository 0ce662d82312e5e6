"""One compaction, carried out: score the rows of every layer, move the kept ones to their new blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from vllm.utils.gpu_sync_debug import gpu_sync_allowed
from vllm.utils.torch_utils import async_tensor_h2d

from .cache import KEYS, Blocks, CacheRows
from .cached_request import CachedRequest
from .commands import Compaction
from .coordinates import CoordinateStore
from .gates import VisualGates
from .layer_stack import STACKED, LayerStack, StackedValues, joined_fields
from .prompt_queries import PromptQueries
from .query_window import QueryStore
from .saliency import SaliencyStore
from .signals import LayerSource, fields_of
from .strategies.base import PART, TEXT, LayerView, Scores


class Compactor:
    """Compacts requests on one worker.

    Args:
        layers: vLLM's attention layers in order, their caches bound.
        rows: access to their caches.
        store: the windows' queries.
        saliency: residual norms, None where the model has no input norms to observe.
        rotation: [P, D] cosines and sines of the rotary embedding, None where it has another form.
        block_size: slots of a block of the scheduler.
        head_offset: number of this rank's first KV head.
        clears: whether slots behind the kept rows are zeroed, because blocks may have held something else than rows.

    Attributes:
        cache_groups: by index of a cache group, the number of its group of layers and its layers.
        prompt_queries: sums over prompts' queries, None where there is no room for any.
        gates: those of `dyvte`, None where none are configured.
        coordinates: those of cached tokens, None where the model has one position per token.
        total: sum of a tensor over all tensor-parallel ranks.
    """

    saliency: SaliencyStore | None
    rotation: Tensor | None
    prompt_queries: PromptQueries | None = None
    gates: VisualGates | None = None
    coordinates: CoordinateStore | None = None

    def __init__(
        self,
        layers: list[Any],
        rows: list[CacheRows],
        store: QueryStore,
        saliency: SaliencyStore | None,
        rotation: Tensor | None,
        block_size: int,
        head_offset: int = 0,
        clears: bool = False,
    ) -> None:
        self.layers, self.rows, self.store, self.saliency = layers, rows, store, saliency
        self.rotation, self.block_size, self.head_offset = rotation, block_size, head_offset
        self.clears = clears
        self.cache_groups: Mapping[int, tuple[int, Sequence[int]]] = {0: (0, range(len(layers)))}
        self.device = layers[0].kv_cache.device
        self.total: Callable[[Tensor], Tensor] = lambda tensor: tensor

    @torch.inference_mode()
    def run(self, command: Compaction, request: CachedRequest) -> float:
        """Carry out a command, and keep in `request` which rows are left.

        Returns:
            Seconds in which the strategy chose rows, over the layers of the cache group; on a GPU those of launching
            its work.
        """
        number, layers = self.cache_groups[command.group]
        source = Blocks.of(command.source, command.rows, self.block_size, self.device)
        target = Blocks.of(command.target, command.keep, self.block_size, self.device)
        behind = self._slots_behind(command) if self.clears else None
        end = command.rows + command.evicted
        window = request.slots_of(range(end - request.window, end))
        slots = async_tensor_h2d(window, device=self.device, dtype=torch.int64)
        unmoved = self._unmoved(command, request, layers[0])
        scoring = 0.0
        divided = LayerStack.divide(
            layers, self.layers, self.rows, command.rows, max(1, request.window), request.strategy
        )
        for stack in divided:
            keys, values = stack.read(source, KEYS), StackedValues(stack, source)
            view = self._view(stack, command, request, keys, values, source.slots, slots, unmoved)
            started = time.perf_counter()
            with gpu_sync_allowed() if request.strategy.waits_for_device() else nullcontext():
                kept, scores = request.strategy.select(view, command.keep)
            scoring += time.perf_counter() - started
            for (index, (rows, layer_keys)), of_layer in zip(stack.split(kept, keys), values.by_layer(), strict=True):
                self.rows[index].move(rows, layer_keys, of_layer, source, target)
                if behind is not None:
                    self.rows[index].clear(behind, layer_keys)
            self._remember(stack, request, view.positions.gather(1, kept), kept, scores)
        request.evicted[number] = command.evicted_after
        return scoring

    def _remember(
        self, stack: LayerStack, request: CachedRequest, positions: Tensor, kept: Tensor, scores: Scores
    ) -> None:
        """Which rows are left in each layer, and what the strategy wants back for them."""
        carried = {name: signal.gather(1, kept) for name, signal in scores.carry.items()}
        for index, (part, *signals) in stack.split(positions, *carried.values()):
            request.positions[index] = part
            request.carried[index] = dict(zip(carried, signals, strict=True))

    def _slots_behind(self, command: Compaction) -> Tensor:
        """int64 slots of the target blocks behind the kept rows.

        Attention multiplies them by zero, and what a block held for another cache group may read as NaN.
        """
        size = self.block_size
        return Blocks.of(command.target, len(command.target) * size, size, self.device).slots[command.keep :]

    def _view(
        self,
        stack: LayerStack,
        command: Compaction,
        request: CachedRequest,
        keys: Tensor,
        values: StackedValues,
        source: Tensor,
        window_slots: Tensor,
        unmoved: tuple[Tensor, Tensor] | None,
    ) -> LayerView:
        if unmoved is not None:
            positions, media = (one.expand(len(keys), -1) for one in unmoved)
        else:
            positions, media = self._moved(stack, command, request)
        heads, wanted = len(keys) // len(stack.indices), request.strategy.wanted()
        sources = (LayerSource(self, index, request, source, window_slots, heads) for index in stack.indices)
        signals = joined_fields([fields_of(wanted, one) for one in sources])
        return LayerView(
            keys=keys.float(),
            values=values,
            positions=positions,
            media=media,
            items=() if unmoved is None else request.items,
            layer=stack.indices[0],
            gamma=request.budgets.gamma(self.cache_groups[command.group][0]),
            window=request.window,
            scale=float(self.layers[stack.indices[0]].impl.scale),
            carried=self._carried(stack, command, request),
            first=unmoved is not None,
            head_offset=self.head_offset,
            seed=request.seed,
            total=self.total,
            **signals,
        )

    def _unmoved(self, command: Compaction, request: CachedRequest, layer: int) -> tuple[Tensor, Tensor] | None:
        """Position and media item of rows that no compaction has moved, int64 [L] both; the same in all layers.

        None after the request's first compaction.
        """
        if layer in request.positions:
            return None
        positions = torch.arange(command.evicted, command.rows + command.evicted, device=self.device)
        return positions, self._media(request, positions)

    def _moved(self, stack: LayerStack, command: Compaction, request: CachedRequest) -> tuple[Tensor, Tensor]:
        """Position and media item of each row of layers after their first compaction, int64 [n * H, L] both."""
        kept = torch.cat([request.positions[index] for index in stack.indices])
        since = torch.arange(kept.shape[1] + command.evicted, command.rows + command.evicted, device=self.device)
        positions = torch.cat([kept, since.expand(len(kept), -1)], dim=1)
        return positions, self._media(request, positions)

    def _carried(self, stack: LayerStack, command: Compaction, request: CachedRequest) -> dict[str, Tensor]:
        layers = [request.carried.get(index, {}) for index in stack.indices]
        kept = {name: torch.cat([one[name] for one in layers]) for name in layers[0]}
        return {name: torch.nn.functional.pad(rows, (0, command.rows - rows.shape[1])) for name, rows in kept.items()}

    def _media(self, request: CachedRequest, positions: Tensor) -> Tensor:
        return torch.where(positions < request.prompt, request.media[positions.clamp(max=request.prompt - 1)], TEXT)


def transient_bytes(layer: Any, rows: int, device: torch.device) -> int:
    """Upper bound of what `Compactor.run` allocates at once, for a request of that many rows.

    A layer's keys and values as they lie in the cache, what strategies make of them in float32 (ten times the keys
    at most, with room to spare), and scores per query head. On a CPU short layers come together.

    Args:
        layer: vLLM's attention layer.
        rows: L.
        device: of the cache.
    """
    heads, dim, group = layer.num_kv_heads, layer.head_size, layer.num_heads // layer.num_kv_heads
    together = 12 * 4 * STACKED if device.type == "cpu" else 0
    return heads * rows * (2 * dim * layer.dtype.itemsize + 4 * (10 * dim + 2 * group)) + 3 * 4 * PART + together
