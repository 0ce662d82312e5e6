"""Target coverage: cells and boxes by hand, and a selection turned upside down."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from PIL import Image

from benchmarks.quality import box_of, target_coverage
from benchmarks.tasks import sample
from vllm_prune.sweep import coverage as module
from vllm_prune.sweep.coverage import Target, cells, coverage, keep, pixel_strategies, targets_of

pytestmark = pytest.mark.slow

SCREENS = 200


def test_cells_are_raster_order_and_channels_apart() -> None:
    picture = Image.new("RGB", (56, 28), (255, 0, 0))
    picture.paste((0, 0, 255), (28, 0, 56, 28))
    pixels, grid = cells(picture)
    assert (grid.frames, grid.rows, grid.cols) == (1, 1, 2)
    assert pixels.view(2, 3, 784).mean(2).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_a_box_touches_the_cells_under_it() -> None:
    picture = Image.new("RGB", (28 * 4, 28 * 3))
    _, grid = cells(picture)
    assert targets_of(Target(picture, (28, 28, 56, 56)), grid) == [5]
    assert targets_of(Target(picture, (27, 27, 57, 29)), grid) == [0, 1, 2, 4, 5, 6]
    assert targets_of(Target(picture, (200, 0, 300, 20)), grid) == []
    # A picture of odd size is resized; its boxes go along.
    odd = Image.new("RGB", (110, 80))
    assert targets_of(Target(odd, (55, 40, 110, 80)), cells(odd)[1]) == [6, 7, 10, 11]


def test_a_generated_answer_stands_in_one_cell() -> None:
    for i in range(20):
        one = sample("test", i)
        _, grid = cells(one.image)
        _, _, row, col = one.targets[0]
        assert targets_of(Target(one.image, box_of(one)), grid) == [row * grid.cols + col]


def by_name(rows: list[dict[str, float]]) -> dict[object, float]:
    return {row["strategy"]: row["coverage"] for row in rows}


def test_informed_strategies_cover_the_answer_and_random_does_not() -> None:
    found = by_name(target_coverage(SCREENS, [0.5]))
    assert {"divprune", "gui_dedup", "random", "uniform", "vidcom2"} <= set(found)
    for name in ("random", "uniform"):
        assert 0.35 <= found[name] <= 0.65
    for name in ("divprune", "gui_dedup"):
        assert found[name] >= found["random"] + 0.25


def test_upside_down_they_fall_below_random() -> None:
    def inverted(strategy: str, pixels: torch.Tensor, grid: object, ratio: float) -> torch.Tensor:
        kept = keep(strategy, pixels, grid, 1 - ratio)
        return torch.tensor(sorted(set(range(len(pixels))) - set(kept.tolist())))

    targets = [Target(one.image, box_of(one)) for one in (sample("test", i) for i in range(SCREENS))]
    upright = by_name(coverage(targets, ["divprune", "gui_dedup", "random"], [0.5]))
    with patch.object(module, "keep", inverted):
        found = by_name(coverage(targets, ["divprune", "gui_dedup"], [0.5]))
    for name, share in found.items():
        assert share <= upright["random"] - 0.25, name


def test_what_needs_the_tower_is_left_out() -> None:
    assert "recv_attn" not in pixel_strategies()
    pixels, grid = cells(Image.new("RGB", (56, 56)))
    with pytest.raises(ValueError, match="tower_attention"):
        keep("recv_attn", pixels, grid, 0.5)
