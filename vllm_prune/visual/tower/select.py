"""From an item's plan to its kept cells, behind the tower or inside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from vllm.utils.gpu_sync_debug import gpu_sync_allowed
from vllm.utils.torch_utils import async_tensor_h2d

from ...catalogue import VISUAL
from ...grid import Grid
from ...telemetry import engine_spans, metrics
from ..item_plan import ItemPlan
from ..strategies._reduction import alone
from ..strategies.base import Reduction
from .cut import Cut
from .kept_store import KEPT
from .scored_cut import ScoredCut, TowerScorer
from .signals import ItemSource, context_of

PrunePoint = tuple[int, bool]
"""Blocks in front of the choice inside the tower, and whether the scorer makes it."""


class Left(NamedTuple):
    """What is left of an item.

    Attributes:
        rows: [K, E], of kept cells with what is merged into them.
        kept: int64 [K], these cells.
        members: int64 [K, P], cells whose coordinates each of them carries; None where that is its own alone.
    """

    rows: Tensor
    kept: Tensor
    members: Tensor | None = None

    def moved(self, first: int) -> Left:
        """The same of an item whose cells begin at `first`."""
        return Left(self.rows, self.kept + first, None if self.members is None else self.members + first)

    def placed(self, relative: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coordinates of the kept cells, [3, K], and of members, [3, K, P], from those of all, [3, M]."""
        return relative[:, self.kept], None if self.members is None else relative[:, self.members]


def joined(parts: Sequence[Left]) -> Left:
    """What is left of an item, from what is left of its parts, one at least."""
    rows, kept = torch.cat([part.rows for part in parts]), torch.cat([part.kept for part in parts])
    count = next((part.members.shape[1] for part in parts if part.members is not None), None)
    if count is None:
        return Left(rows, kept)
    each = (alone(part.kept, count) if part.members is None else part.members for part in parts)
    return Left(rows, kept, torch.cat(list(each)))


def prune_point(plan: ItemPlan, scorer: TowerScorer | None) -> PrunePoint | None:
    """Where a plan cuts inside the tower; None for a choice behind it."""
    if "scorer" not in VISUAL.strategy_class(plan.strategy).needs:
        return None if plan.cut is None else (plan.cut, False)
    if scorer is None:
        raise RuntimeError(f"strategy {plan.strategy!r} without a scorer; the front end should have refused it")
    return scorer.scorer.shape.after, True


def choose_cells(plan: ItemPlan, source: ItemSource) -> Tensor:
    """Kept cells of one item, int64 [K]."""
    return _reduce(plan, source).kept


def kept_rows(plan: ItemPlan, source: ItemSource, rows: Tensor) -> Left:
    """What is left of one item behind the tower.

    Args:
        plan: of the item.
        source: what its strategy looks at.
        rows: [M, E], the tower's output.
    """
    reduction = _reduce(plan, source)
    several = plan.positions > 1 and reduction.members is not None
    return Left(reduction.rows(rows), reduction.kept, reduction.members_of(plan.positions) if several else None)


def _reduce(plan: ItemPlan, source: ItemSource) -> Reduction:
    started = time.perf_counter()
    if plan.indices is not None:
        indices = async_tensor_h2d(list(plan.indices), device=source.features.device, dtype=torch.int64)
        reduction = Reduction(indices)
    else:
        strategy = VISUAL.create(plan.strategy, plan.option_values)
        context = context_of(plan, strategy.wanted(), source)
        with gpu_sync_allowed() if strategy.waits_for_device() else nullcontext():
            reduction = strategy.reduce(source.features, source.grid, plan.count, context, plan.per_frame)
    KEPT.remember(plan.key, reduction.kept, source.grid.tokens)
    seconds = time.perf_counter() - started
    metrics.observe_score("visual", plan.strategy, seconds)
    engine_spans.scored(plan.strategy, seconds)
    return reduction


def build_cut(
    place: PrunePoint,
    plans: Sequence[ItemPlan],
    grids: Sequence[Grid],
    scorer: TowerScorer | None,
    device: torch.device,
) -> tuple[Cut, list[Tensor]]:
    """The cut of a batch whose items all cut at one place.

    Args:
        place: see `prune_point`.
        plans, grids: the items.
        scorer: the model's.
        device: the tower's.

    Returns:
        The cut, and a list that has each item's kept cells once the tower has run.
    """
    (after, scored), kept = place, list[Tensor]()

    def choose(rows: Tensor) -> Tensor:
        parts = rows.split([grid.tokens for grid in grids])
        for part, plan, grid in zip(parts, plans, grids, strict=True):
            source = ItemSource(grid, part[:, None], {"scorer": part}) if scored else ItemSource(grid, part)
            kept.append(choose_cells(plan, source))
        starts = [0, *accumulate(grid.tokens for grid in grids)]
        return torch.cat([item_kept + start for item_kept, start in zip(kept, starts, strict=False)])

    counts = [plan.count for plan in plans]
    if not scored:
        return Cut(after, sum(counts), choose), kept
    assert scorer is not None
    return ScoredCut(scorer.scorer.to(device), grids, counts, choose), kept
