"""From a request's budget to a grant for each of its media items; pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..catalogue import VISUAL
from ..grid import Grid, Modality
from ..shares import largest_remainder
from .canonical import Part, VisualSpec
from .errors import BudgetError


@dataclass(frozen=True)
class ItemBudget:
    """What one media item has been granted: a ratio, or an absolute count; `capped` if the operator's cap decided."""

    strategy: str
    options: str
    keep: str | None
    count: int | None
    capped: bool = False

    def key(self) -> str:
        """Cache-key suffix: equal for equal budgets of the item, different otherwise."""
        return f"{self.strategy}{self.options}{'r' + self.keep if self.keep else self.count}"


def plan(grid: Grid, budget: ItemBudget) -> int:
    """K, the tokens kept of an item: a pure function of its grid and its budget, 1 <= K <= M."""
    if budget.keep is not None:
        return Part(budget.strategy, keep=budget.keep).ratio_count(grid.tokens)
    assert budget.count is not None
    return max(1, min(budget.count, grid.tokens))


def allocate(spec: VisualSpec, sizes: Mapping[Modality, Sequence[int]]) -> dict[Modality, list[ItemBudget | None]]:
    """Grant every item its budget; `max_tokens` is shared by size, largest remainder.

    Args:
        spec: canonical budget of the request.
        sizes: tokens of each item before pruning, per modality, in prompt order of that modality.

    Returns:
        For each modality one entry per item, None where nothing is pruned.

    Raises:
        BudgetError: fewer tokens than items, or a strategy that does not handle the modality.
    """
    grants: dict[Modality, list[ItemBudget | None]] = {}
    shared: list[tuple[Modality, int]] = []
    for modality, items in sizes.items():
        part = spec.part(modality)
        grants[modality] = [None] * len(items)
        if part is None or not items:
            continue
        _check_modality(part.strategy, modality)
        if part.keep is not None:
            grants[modality] = [ItemBudget(part.strategy, part.options, part.keep, None)] * len(items)
        elif part.max_tokens is not None:
            _share(grants, spec, [(modality, i) for i in range(len(items))], sizes, part.max_tokens)
        else:
            shared += [(modality, i) for i in range(len(items))]
    if shared:
        assert spec.max_tokens is not None
        _share(grants, spec, shared, sizes, spec.max_tokens)
    return _capped(grants, spec, sizes)


def _check_modality(strategy: str, modality: Modality) -> None:
    if modality not in VISUAL.strategy_class(strategy).modalities:
        raise BudgetError(
            f"strategy {strategy!r} does not prune {modality}s; name another one in pruning.visual.{modality}, "
            f"or turn that modality off with null",
            "pruning.visual.strategy",
        )


def _share(
    grants: dict[Modality, list[ItemBudget | None]],
    spec: VisualSpec,
    places: Sequence[tuple[Modality, int]],
    sizes: Mapping[Modality, Sequence[int]],
    total: int,
    capped: bool = False,
) -> None:

    weights = [sizes[m][i] for m, i in places]
    if total < len(places):
        raise BudgetError(
            f"max_tokens {total} is less than one token for each of {len(places)} items", "pruning.visual.max_tokens"
        )
    counts = largest_remainder(min(total, sum(weights)), weights, weights, 1)
    for (modality, i), count in zip(places, counts, strict=True):
        part = spec.part_of_cap(modality)
        grants[modality][i] = (
            None if count >= sizes[modality][i] else ItemBudget(part.strategy, part.options, None, count, capped)
        )


def _check_cap(spec: VisualSpec, modality: Modality, kept: int, items: int) -> None:
    strategy = spec.part_of_cap(modality).strategy
    if items and modality not in VISUAL.strategy_class(strategy).modalities:
        raise BudgetError(
            f"{kept} visual tokens are over the operator's limit of {spec.limit}, and no strategy that is allowed here "
            f"prunes {modality}s; send fewer or smaller ones",
            f"pruning.visual.{modality}",
        )


def _capped(
    grants: dict[Modality, list[ItemBudget | None]], spec: VisualSpec, sizes: Mapping[Modality, Sequence[int]]
) -> dict[Modality, list[ItemBudget | None]]:
    """Apply the operator's cap: over it, everything is shared out anew within the cap."""
    if spec.limit is None:
        return grants
    kept = sum(
        size if grant is None else plan(Grid(1, 1, size), grant)
        for modality in sizes
        for size, grant in zip(sizes[modality], grants[modality], strict=True)
    )
    if kept > spec.limit and spec.strict:
        raise BudgetError(f"{kept} visual tokens are over the operator's limit of {spec.limit}", "pruning.visual")
    if kept > spec.limit:
        for modality in sizes:
            _check_cap(spec, modality, kept, len(sizes[modality]))
        everything = [(m, i) for m in sizes for i in range(len(sizes[m]))]
        _share(grants, spec, everything, sizes, spec.limit, capped=True)
    return grants
