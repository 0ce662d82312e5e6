"""The budget of one media item, with what decides its cache key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...budget.allocate import ItemBudget
from ...catalogue import VISUAL
from ..strategies.base import Strategy


@dataclass(frozen=True)
class Grant:
    """Budget of one item, and what its plan depends on.

    Attributes:
        budget: None where the item keeps everything.
        base: the item's hash without a budget.
        earlier: base hashes of the items before it, for strategies that compare items.
        patches_of: gives the processor output of an earlier item that was served from a cache.
        text: token ids of the request's text, for strategies that read it.
        modality: whose budget the item has; of an item that takes none its modality in vLLM.
    """

    budget: ItemBudget | None
    base: str
    earlier: tuple[str, ...] = ()
    patches_of: Callable[[int], Any] | None = field(default=None, compare=False, repr=False)
    text: tuple[int, ...] | None = None
    modality: str = field(kw_only=True)

    @property
    def resizes(self) -> bool:
        """Whether the item is drawn smaller, unless its budget is all of it."""
        if self.budget is None:
            return False
        strategy = VISUAL.strategy_class(self.budget.strategy)
        return strategy.resized is not Strategy.resized

    @property
    def seed(self) -> int:
        """63-bit number from the item's content."""
        return int.from_bytes(hashlib.blake2b(self.base.encode(), digest_size=8).digest(), "big") >> 1

    @property
    def key(self) -> str:
        """Cache key of the item under this grant; the parent's own where nothing is pruned."""
        if self.budget is None:
            return self.base
        question = () if self.text is None else (f"text:{','.join(map(str, self.text))}",)
        text = "|".join([self.budget.key(), *self.earlier, *question])
        return f"{self.base}-{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}"

    @property
    def kept_key(self) -> str:
        """Name of the item under this budget in `KeptStore`: as good as its cache key, and shorter."""
        return hashlib.blake2b(self.key.encode(), digest_size=16).hexdigest()


Grants = dict[str, list[Grant]]
"""By vLLM's modality, one per item."""
