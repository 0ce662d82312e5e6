"""`keep: "auto"`: the front end counts different contents, for every family's way of placing frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vllm_prune.grid import bitmap

from . import media
from .checkpoints import CELL
from .media import Visual

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

AUTO: Visual = {"strategy": "pixel_exact", "keep": "auto"}


def tiles(rows: list[list[int]], cell: int) -> np.ndarray:
    """A picture of whole cells, equal where numbers are equal."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 255, (10, cell, cell, 3), dtype=np.uint8)
    return np.concatenate([np.concatenate([drawn[number] for number in row], axis=1) for row in rows])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen2_vl"])
def test_one_of_all_equal_cells(name: str, reported: Callable[..., list[dict[str, Any]]]) -> None:
    cell = CELL.get(name, 28)
    still, plain = [[0, 1, 0], [1, 2, 2], [3, 3, 0]], [[5, 5, 5], [5, 5, 5], [5, 5, 5]]
    moved = [[0, 1, 0], [1, 2, 2], [3, 3, 4]]
    steps = [still, still, moved]
    film = np.stack([tiles(step, cell) for step in steps for _ in range(2)])
    clip = film, media.video(6, cell, cell)[1]
    different = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    shown = [Image.fromarray(tiles(rows, cell)) for rows in (still, plain, different)]
    found = reported(name, (shown[0], clip, shown[1], shown[2]), AUTO)
    assert [(item["input_tokens"], item["kept_tokens"]) for item in found] == [(9, 4), (27, 6), (9, 1), (9, 9)]
    assert found[0]["kept"] == bitmap([0, 1, 4, 6], 9)
    # The second step has nothing new, and keeps one; the third has one new cell.
    assert found[1]["kept"] == bitmap([0, 1, 4, 6, 9, 26], 27)
