"""Tower sizes are read from either kind of configuration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_prune.visual.scorers.tower_shape import TowerShape, tower_shape


def molmo2(vit_layers: list[int]) -> Any:
    vit = SimpleNamespace(hidden_size=1152, num_hidden_layers=27)
    adapter = SimpleNamespace(vit_layers=vit_layers, text_hidden_size=2560)
    return SimpleNamespace(vit_config=vit, adapter_config=adapter)


@pytest.mark.parametrize(("layers", "depth"), [([-3, -9], 25), ([-9, -3], 25), ([24, 18], 25), ([-1, 3], 27)])
def test_molmo2_builds_no_block_above_the_last_that_is_used(layers: list[int], depth: int) -> None:
    assert tower_shape(molmo2(layers)) == TowerShape(1152, 3, depth, 2560, depth)


def test_qwen() -> None:
    vision = SimpleNamespace(hidden_size=1280, spatial_merge_size=2, depth=32, out_hidden_size=3584)
    assert tower_shape(SimpleNamespace(vision_config=vision)) == TowerShape(1280, 2, 32, 3584, 32)
    vision.fullatt_block_indexes = [7, 15, 23, 31, 40]
    assert tower_shape(SimpleNamespace(vision_config=vision)) == TowerShape(1280, 2, 32, 3584, 4)


def test_no_tower() -> None:
    assert tower_shape(SimpleNamespace()) is None
    assert tower_shape(SimpleNamespace(vision_config=SimpleNamespace(hidden_size=8))) is None
