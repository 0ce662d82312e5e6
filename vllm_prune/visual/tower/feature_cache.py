"""The tower's outputs of items that were seen before, so that another budget, question or strategy for the same picture
does not run the tower again.

The memory is taken when the model is made, so that vLLM counts it as part of the model. An item stands there by its
content without the budget, with what was captured while the tower ran. The items used least recently make room.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...config.worker_facts import WorkerFacts
from ...signals import VisualSignal
from ...telemetry import metrics
from ..item_plan import ItemPlan
from ..strategies.base import to_device
from .signals import attended, needed

PAGE = 64
"""Rows that are given and taken together."""
KEPT: frozenset[VisualSignal] = frozenset({"tower_attention", "projector"})
"""What is kept of the running tower beside its outputs; what is larger than these is captured anew."""
CAPTURED = KEPT | {"unpooled"}
"""What strategies may need of the running tower."""

_LOG = logging.getLogger("vllm.vllm_prune")


@dataclass(frozen=True)
class Encoded:
    """What the tower has made of one item.

    Attributes:
        rows: [M, width], its outputs.
        captured: see `ItemSource.captured`.
    """

    rows: Tensor
    captured: Mapping[VisualSignal, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Kept:
    """An item here: its pages, its rows, what was captured, and of how many blocks its attention is (None for all)."""

    pages: tuple[int, ...]
    rows: int
    captured: Mapping[VisualSignal, Tensor]
    blocks: int | None

    def suffices(self, plan: ItemPlan) -> bool:
        """Whether what was captured is all that a plan needs of the running tower."""
        wanted, last = needed([plan]) & CAPTURED, plan.attention_blocks.stop
        if not wanted <= self.captured.keys():
            return False
        return "tower_attention" not in wanted or self.blocks is None or (last is not None and last <= self.blocks)


class FeatureCache:
    """Outputs by content, least recently used first.

    Args:
        max_bytes: size of the memory; 0 keeps nothing and takes none.
        width: columns of an output.
        dtype, device: of the outputs.

    Raises:
        ValueError: a size other than 0 that has no room for a page.
    """

    def __init__(self, max_bytes: int, width: int, dtype: torch.dtype, device: torch.device | None = None) -> None:
        page_bytes = PAGE * width * dtype.itemsize
        count = max_bytes // page_bytes
        if max_bytes and not count:
            raise ValueError(f"feature_cache.max_bytes is {max_bytes}, and {PAGE} visual tokens take {page_bytes}")
        self._memory = torch.empty(count, PAGE, width, dtype=dtype, device=device)
        self._page_bytes = page_bytes
        self._items: OrderedDict[str, _Kept] = OrderedDict()
        self._free = list(range(count))

    @classmethod
    def of(cls, vllm_config: Any, width: int) -> FeatureCache:
        """That of a server, on the device that models are made on.

        Raises:
            ValueError: see `FeatureCache`; or encoder CUDA graphs, which run the tower before it could be asked.
        """
        size = WorkerFacts.of(vllm_config).feature_cache_bytes
        if not size:
            return cls(0, width, torch.float32)
        if getattr(vllm_config.compilation_config, "cudagraph_mm_encoder", False):
            raise ValueError("feature_cache does not go with encoder CUDA graphs; drop one of the two")
        cache = cls(size, width, vllm_config.model_config.dtype)
        room = len(cache._free) * PAGE
        _LOG.info("Feature cache: %.2f GiB on each worker, room for %d visual tokens", size / (1 << 30), room)
        return cache

    def encode(
        self, plans: Sequence[ItemPlan | None], run: Callable[[Sequence[int]], Sequence[Encoded]], apart: bool = True
    ) -> Sequence[Encoded]:
        """Outputs of a batch of items, by the tower only where they are not here.

        Args:
            plans: of the items; those without one, and those whose content has no name, are always run.
            run: the tower, for some of the items by their places in the batch.
            apart: whether some items of a batch can be run without the others.
        """
        everything = range(len(plans))
        if not len(self._memory):
            return run(everything)
        stored = [self._get(plan) for plan in plans]
        missing: Sequence[int] = [i for i in everything if stored[i] is None]
        if missing and not apart:
            missing = everything
        for i, plan in enumerate(plans):
            if plan is not None and plan.content:
                metrics.count_feature_lookup("miss" if i in missing else "hit")
        fresh = dict(zip(missing, run(missing), strict=True)) if missing else {}
        blocks = attended([plans[i] for i in missing])
        for i, encoded in fresh.items():
            self._put(plans[i], encoded, blocks)
        metrics.set_feature_cache_bytes((len(self._memory) - len(self._free)) * self._page_bytes)
        outputs = (fresh.get(i, one) for i, one in enumerate(stored))
        return [one for one in outputs if one is not None]

    def clear(self) -> None:
        """Forget all items: they belong to weights that are replaced."""
        for key in list(self._items):
            self._drop(key)

    def _get(self, plan: ItemPlan | None) -> Encoded | None:
        kept = None if plan is None else self._items.get(plan.content)
        if plan is None or kept is None or not kept.suffices(plan):
            return None
        self._items.move_to_end(plan.content)
        rows = self._memory[self._places(kept.pages)].flatten(0, 1)[: kept.rows]
        return Encoded(rows, kept.captured)

    def _put(self, plan: ItemPlan | None, encoded: Encoded, blocks: int | None) -> None:
        rows, memory = encoded.rows, self._memory
        count = -(-len(rows) // PAGE)
        fits = count <= len(memory) and rows.dtype == memory.dtype and rows.shape[1] == memory.shape[2]
        if plan is None or not plan.content or not fits:
            return
        self._drop(plan.content)
        while len(self._free) < count:
            self._drop(next(iter(self._items)))
        pages, self._free = tuple(self._free[:count]), self._free[count:]
        memory[self._places(pages)] = pad(rows, (0, 0, 0, count * PAGE - len(rows))).view(count, PAGE, -1)
        captured = {name: one.clone() for name, one in encoded.captured.items() if name in KEPT and one is not None}
        self._items[plan.content] = _Kept(pages, len(rows), captured, blocks)

    def _drop(self, key: str) -> None:
        if kept := self._items.pop(key, None):
            self._free += kept.pages

    def _places(self, pages: Sequence[int]) -> Tensor:
        return to_device(torch.tensor(pages, device="cpu"), self._memory.device)


def refuse_feature_cache(vllm_config: Any, family: str) -> None:
    """For adapters that do without. Raises ValueError where the configuration wants one."""
    if WorkerFacts.of(vllm_config).feature_cache_bytes:
        raise ValueError(f"feature_cache is not available for {family}; set feature_cache.max_bytes to 0")
