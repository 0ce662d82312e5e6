"""The choice of a generic adapter: from the tower's outputs of one item to the visual tokens that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...config.worker_facts import WorkerFacts
from ...grid import Grid
from ...signals import VisualSignal
from ..item_plan import ItemPlan
from ..strategies._trained import Network
from ..tower.kept_store import KEPT
from ..tower.select import Left, joined, kept_rows
from ..tower.signals import ItemSource
from .segments import runs_of


def choose(
    plan: ItemPlan,
    features: Tensor,
    facts: WorkerFacts,
    text: Tensor | None = None,
    networks: Mapping[str, Network] | None = None,
    captured: Mapping[VisualSignal, Any] | None = None,
) -> Left:
    """What is left of an item: rows of kept tokens, [K + marks, width], and which these are, int64 [K + marks].

    Runs of one length are treated as the frames of a video: a strategy compares them with each other and chooses inside
    each. Runs of several lengths are chosen from one by one.

    Args:
        plan: with `segments` and `grid`.
        features: [M + marks, width], what the tower has put out.
        facts: of this worker.
        text: [L, D], embeddings of the request's text, where the plan has any.
        networks: trained layers by the name of their strategy.
        captured: see `ItemSource.captured`.

    Raises:
        ValueError: the tower's output is not of the plan's size.
    """
    assert plan.grid is not None
    before, behind = plan.marks
    last = len(features) - behind
    source = ItemSource(Grid(*plan.grid), features[before:last], captured or {}, facts, text, networks or {})
    left = _choose(plan, source)
    if not before and not behind:
        return left
    numbers = torch.arange(len(features), device=left.kept.device)
    marks = Left(features[:before], numbers[:before]), Left(features[last:], numbers[last:])
    return joined([marks[0], left.moved(before), marks[1]])


def _choose(plan: ItemPlan, source: ItemSource) -> Left:
    assert plan.segments is not None
    grid, features, runs = source.grid, source.features, runs_of(plan.segments)
    if len(features) != grid.tokens:
        raise ValueError(f"the tower gave {len(features)} rows for an item of {grid.tokens} visual tokens")
    if plan.per_frame is None or len(runs) == grid.frames:
        return kept_rows(plan, source, features)
    if len(set(runs)) == 1:
        return kept_rows(plan, replace(source, grid=Grid(len(runs), 1, runs[0])), features)
    return _run_by_run(plan, source, runs)


def _run_by_run(plan: ItemPlan, source: ItemSource, runs: Sequence[int]) -> Left:
    assert plan.per_frame is not None
    features = source.features
    parts, first = list[Left](), 0
    for n, count, rows in zip(runs, plan.per_frame, features.split(list(runs)), strict=True):
        if count:
            alone = replace(plan, count=count, per_frame=None, key="")
            part = kept_rows(alone, replace(source, grid=Grid(1, 1, n), features=rows), rows)
            parts.append(part.moved(first))
        first += n
    left = joined(parts)
    KEPT.remember(plan.key, left.kept, len(features))
    return left
