"""What a worker provides to visual strategies: one entry per signal, by its name in `vllm_prune.signals`.

Where a signal is not to be had, `support.signals` refuses the request; nothing here decides about requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ...catalogue import VISUAL
from ...config.worker_facts import WorkerFacts
from ...grid import Grid
from ...signals import VisualSignal
from ..item_plan import ItemPlan
from ..scorers.vision_selector import SELECTOR
from ..strategies._frames import Frames
from ..strategies._trained import Network
from ..strategies.base import Context
from .received_attention import Listener


@dataclass(frozen=True)
class ItemSource:
    """Where the signals of one item come from.

    Attributes:
        grid: shape of the item.
        features: [M, *], what its strategy looks at, one row per cell.
        captured: what was computed while the tower ran; None where it was not. Float32 [M] each, but for attention one
            row for each block, [B, M], that of the last block first, and `Frames` for a video before it is pooled.
        facts: what this worker knows of the configuration.
        text: [L, D], embeddings of the request's text, where the plan has any.
        networks: trained layers by the name of their strategy.
    """

    grid: Grid
    features: Tensor
    captured: Mapping[VisualSignal, Any] = field(default_factory=dict)
    facts: WorkerFacts = field(default_factory=WorkerFacts)
    text: Tensor | None = None
    networks: Mapping[str, Network] = field(default_factory=dict)


@dataclass(frozen=True)
class Provider:
    """How one signal reaches a strategy.

    Attributes:
        field: the field of `Context` that holds it; None for a signal that the front end has used already.
        provide: computes it for one item, as the field has it.
    """

    field: Literal["tower_attention", "scores", "sensitivity", "text", "network", "unpooled"] | None
    provide: Callable[[ItemSource, ItemPlan], Tensor | Network | Frames | None]


def _mean_attention(source: ItemSource, plan: ItemPlan) -> Tensor | None:
    blocks = source.captured.get("tower_attention")
    return None if blocks is None else blocks[plan.attention_blocks].mean(0)


def _selector_scores(source: ItemSource, plan: ItemPlan) -> Tensor | None:
    path = source.facts.selector
    return None if path is None else SELECTOR.load(Path(path)).score(source.features, [source.grid])


PROVIDERS: dict[VisualSignal, Provider] = {
    "tower_attention": Provider("tower_attention", _mean_attention),
    "pixels": Provider(None, lambda source, _: None),
    "scorer": Provider("scores", lambda source, _: source.captured.get("scorer")),
    "selector": Provider("scores", _selector_scores),
    "projector": Provider("sensitivity", lambda source, _: source.captured.get("projector")),
    "text": Provider("text", lambda source, _: source.text),
    "unpooled": Provider("unpooled", lambda source, _: source.captured.get("unpooled")),
    "weights": Provider("network", lambda source, plan: source.networks.get(plan.strategy)),
    "any_size": Provider(None, lambda source, _: None),
}
"""The visual signals."""


def context_of(plan: ItemPlan, needs: Iterable[VisualSignal], source: ItemSource) -> Context:
    """What a strategy with these needs may look at."""
    providers = [PROVIDERS[name] for name in sorted(needs)]
    fields: dict[str, Any] = {one.field: one.provide(source, plan) for one in providers if one.field is not None}
    return Context(plan.seed, **fields)


def needed(plans: Iterable[ItemPlan | None]) -> frozenset[VisualSignal]:
    """The signals that any of the items needs."""
    needs = [VISUAL.create(plan.strategy, plan.option_values).wanted() for plan in plans if plan is not None]
    return frozenset[VisualSignal]().union(*needs)


def attended(plans: Iterable[ItemPlan | None]) -> int | None:
    """How many of the tower's last blocks the items need attention of; None for all."""
    ends = [plan.attention_blocks.stop for plan in plans if plan is not None]
    return None if None in ends else max(ends, default=0)


class Captures(ExitStack):
    """Listens to several modules of a tower while it runs.

    Args:
        listeners: by the name of the signal that each of them captures.
    """

    def __init__(self, listeners: Mapping[VisualSignal, Listener]) -> None:
        super().__init__()
        self._listeners = {name: self.enter_context(listener) for name, listener in listeners.items()}

    def per_item(self, items: int, *batch: Any) -> Sequence[dict[VisualSignal, Any]]:
        """The captured signals of each item; `batch` is what the family's listeners need to tell items apart."""
        columns = {name: listener.per_item(*batch) for name, listener in self._listeners.items()}
        return [{name: column[i] for name, column in columns.items()} for i in range(items)]
