"""Pictures are drawn smaller as a well-known library draws them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.engine import media
from vllm_prune.visual.frontend.resizing import drawn


@pytest.mark.parametrize(("height", "width"), [(56, 84), (28, 28), (84, 140)])
def test_bicubic_with_antialiasing(height: int, width: int) -> None:
    picture = media.image(140, 196, seed=3)
    smaller = np.asarray(drawn(picture, height, width)).astype(int)
    assert smaller.shape == (height, width, 3)

    def apart(way: Image.Resampling) -> float:
        return float(abs(smaller - np.asarray(picture.resize((width, height), way)).astype(int)).mean())

    # Pillow rounds and clips between the two directions.
    assert apart(Image.Resampling.BICUBIC) < 0.1
    assert apart(Image.Resampling.LANCZOS) > 0.2


def test_arrays_and_tensors_are_drawn_alike() -> None:
    picture = media.image(60, 90, seed=4)
    frame = np.asarray(picture)
    wanted = drawn(picture, 28, 56).tobytes()
    assert drawn(frame, 28, 56).tobytes() == drawn(frame.transpose(2, 0, 1), 28, 56).tobytes() == wanted
