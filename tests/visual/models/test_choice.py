"""The choice of a generic adapter, run by run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.visual.strategies.trained import PATCHES, network_for
from vllm_prune.config.worker_facts import WorkerFacts
from vllm_prune.grid import Grid
from vllm_prune.visual.item_plan import ItemPlan, decode
from vllm_prune.visual.models.choice import choose
from vllm_prune.visual.strategies._frames import Frames
from vllm_prune.visual.strategies.base import Context
from vllm_prune.visual.strategies.divprune import DivPrune
from vllm_prune.visual.strategies.vqtoken import VqToken
from vllm_prune.visual.tower.kept_store import KEPT

FACTS = WorkerFacts()


def features(tokens: int) -> torch.Tensor:
    return torch.randn(tokens, 8, generator=torch.Generator().manual_seed(tokens))


def test_runs_of_several_lengths_are_chosen_from_one_by_one() -> None:
    rows = features(9)
    plan = ItemPlan("divprune", "{}", 5, 0, (3, 0, 2), None, "uneven", (-1, 4, -1, 2, 3), (1, 1, 9))
    kept = choose(plan, rows, FACTS)[1]
    first = DivPrune().select(rows[:4], Grid(1, 1, 4), 3, Context())
    last = DivPrune().select(rows[6:], Grid(1, 1, 3), 2, Context())
    assert kept.tolist() == [*first.tolist(), *(6 + last).tolist()]
    assert KEPT.bitmap("uneven") is not None


def test_equal_runs_are_frames_to_a_strategy() -> None:
    rows = features(12)
    plan = ItemPlan("divprune", "{}", 5, 0, (2, 3), None, "", (6, -1, 6), (1, 2, 6))
    expected = DivPrune().select(rows, Grid(2, 1, 6), 5, Context(), (2, 3))
    assert torch.equal(choose(plan, rows, FACTS)[1], expected)
    assert torch.equal(choose(replace(plan, grid=(2, 2, 3)), rows, FACTS)[1], expected)


def test_one_run_is_chosen_from_freely() -> None:
    rows = features(12)
    plan = ItemPlan("divprune", "{}", 5, 0, None, None, "", (12,), (2, 2, 3))
    assert torch.equal(choose(plan, rows, FACTS)[1], DivPrune().select(rows, Grid(2, 2, 3), 5, Context()))


def test_what_was_captured_reaches_the_strategy() -> None:
    rows, network = torch.randn(9, 16), network_for("vqtoken", 16)
    assert network is not None
    frames = Frames(torch.randn(2, PATCHES, 16), 4)
    plan = ItemPlan("vqtoken", "{}", 4, 3, None, None, "", (9,), (1, 1, 9))
    left, kept, members = choose(plan, rows, FACTS, None, {"vqtoken": network}, {"unpooled": frames})
    assert members is None
    expected = VqToken().reduce(rows, Grid(1, 1, 9), 4, Context(3, network=network, unpooled=frames))
    assert torch.equal(kept, expected.kept)
    assert torch.equal(left, expected.rows(rows))


@pytest.mark.parametrize("segments", [(12,), (6, -1, 6), (4, -1, 2, 6)])
def test_what_is_merged_comes_with_the_kept(segments: tuple[int, ...]) -> None:
    rows, runs = features(12), [n for n in segments if n > 0]
    per_frame = None if len(runs) == 1 else (2, *[1] * (len(runs) - 1))
    plan = ItemPlan("vqtoken_kmeans", "{}", sum(per_frame or (3,)), 0, per_frame, None, "", segments, (1, 1, 12))
    left, kept, members = choose(plan, rows, FACTS)
    assert left.shape == (plan.count, 8)
    assert members is None
    assert not torch.equal(left, rows[kept])
    # Means lie between the rows of their run.
    starts = torch.tensor(runs).cumsum(0)
    run = torch.bucketize(kept, starts, right=True)
    for number, part in enumerate(rows.split(runs)):
        assert left[run == number].min() >= part.min()
        assert left[run == number].max() <= part.max()
    several = choose(replace(plan, options='{"positions":3}'), rows, FACTS)
    assert torch.equal(several.rows, left)
    assert torch.equal(several.kept, kept)
    assert several.members is not None
    assert several.members.shape == (plan.count, 3)
    assert torch.equal(torch.bucketize(several.members, starts, right=True), run[:, None].expand(-1, 3))
    for row, of_row in zip(left, several.members, strict=True):
        # Groups of up to three are their members' mean.
        if len(group := of_row.unique()) < 3:
            torch.testing.assert_close(rows[group].mean(0), row)


@pytest.mark.parametrize("name", ["divprune", "vqtoken_kmeans"])
@pytest.mark.parametrize("marks", [(1, 1), (2, 0), (0, 3)])
def test_marks_stay_and_are_not_chosen_from(marks: tuple[int, int], name: str) -> None:
    before, behind = marks
    rows = features(12 + before + behind)
    plan = ItemPlan(name, "{}", 5, 0, None, None, "marked", (len(rows),), (2, 2, 3), marks)
    left, kept, _ = choose(plan, rows, FACTS)
    inner, chosen, _ = choose(replace(plan, marks=(0, 0), segments=(12,)), rows[before : before + 12], FACTS)
    assert kept.tolist() == [*range(before), *(before + chosen).tolist(), *range(before + 12, len(rows))]
    assert torch.equal(left[before : before + 5], inner)
    assert torch.equal(left[:before], rows[:before])
    assert torch.equal(left[before + 5 :], rows[before + 12 :])
    members = choose(replace(plan, options='{"positions":2}'), rows, FACTS).members if name != "divprune" else None
    if members is not None:
        assert members.shape == (len(kept), 2)
        ends = torch.cat([members[:before], members[before + 5 :]])
        assert torch.equal(ends, torch.cat([kept[:before], kept[before + 5 :]])[:, None].expand(-1, 2))
        assert before <= members[before : before + 5].min()
        assert members[before : before + 5].max() < before + 12
    with pytest.raises(ValueError, match="11 rows"):
        choose(plan, rows[1:], FACTS)


def test_a_tower_output_of_another_size_is_an_error() -> None:
    plan = ItemPlan("uniform", "{}", 5, 0, None, None, "", (12,), (1, 1, 12))
    with pytest.raises(ValueError, match="11 rows"):
        choose(plan, features(11), FACTS)


def test_segments_and_grid_travel() -> None:
    plan = ItemPlan("uniform", "{}", 5, 0, (2, 3), None, "k", (6, -1, 6), (2, 2, 3))
    assert decode(plan.encode()) == plan
    plan = replace(plan, per_frame=None, marks=(1, 1))
    assert decode(plan.encode()) == plan
