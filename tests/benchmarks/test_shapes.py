"""Shapes without weights: configurations build the models that they claim, and media get the right tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import shapes
from benchmarks.gpu.tower_child import Blocks
from benchmarks.shapes import EIGHT_B, SEVEN_B, SMALL_3, TINY_2_5, TINY_3, Shape, build

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "shape", [SEVEN_B, EIGHT_B, SMALL_3, TINY_2_5, TINY_3], ids=lambda shape: f"{shape.family}-{shape.layers}"
)
def test_the_model_has_the_weights_that_the_shape_counts(shape: Shape, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(build(shape, tmp_path / "model"))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    layers = [*model.model.language_model.layers.parameters(), *model.model.visual.blocks.parameters()]
    # Norms and biases are not counted.
    assert 2 * sum(one.numel() for one in layers) == pytest.approx(shape.weight_bytes, rel=0.02)
    # Small towers have mergers that are large beside them.
    mergers = [one for name, one in model.model.visual.named_parameters() if "merger" in name]
    counted = sum(one.numel() for one in (*layers, *mergers))
    assert 0 < sum(one.numel() for one in model.parameters()) - counted < 0.01 * counted + 5e6
    assert model.config.text_config.num_hidden_layers == shape.layers
    assert len(model.model.visual.blocks) == shape.depth


@pytest.mark.parametrize(
    "shape", [SEVEN_B, EIGHT_B, SMALL_3, TINY_2_5, TINY_3], ids=lambda shape: f"{shape.family}-{shape.layers}"
)
def test_media_are_not_resized(shape: Shape, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(build(shape, tmp_path / "model"))
    rows, cols = (60, 64) if shape.depth > 8 else (4, 6)
    picture = np.zeros((rows * shape.cell, cols * shape.cell, 3), np.uint8)
    found = processor.image_processor(images=[picture], return_tensors="pt")
    assert found["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * cols]]
    frames = np.zeros((8, 3 * shape.cell, 4 * shape.cell, 3), np.uint8)
    found = processor.video_processor(videos=[frames], return_tensors="pt", do_sample_frames=False)
    assert found["video_grid_thw"].tolist() == [[4, 6, 8]]


def test_a_folder_is_written_once(tmp_path: Path) -> None:
    folder = build(TINY_3, tmp_path / "model")
    (folder / "config.json").write_text("{}")
    assert build(TINY_3, folder) == folder
    assert (folder / "config.json").read_text() == "{}"
    assert shapes.TINY_3.cell == 32


class Uncounted(torch.nn.Linear):
    """Like vLLM's blocks that may be compiled: a call goes to `forward` and past PyTorch's hooks."""

    def __call__(self, *args: object, **kwargs: object) -> torch.Tensor:
        return self.forward(*args, **kwargs)  # type: ignore[arg-type]


def test_blocks_are_timed_however_they_are_called() -> None:
    tower = torch.nn.ModuleList([torch.nn.Linear(4, 4), Uncounted(4, 4)])
    blocks = Blocks()
    blocks.watch(tower, cuda=False)
    rows = torch.zeros(6, 4)
    tower[1](tower[0](rows)[:3])
    assert blocks.rows == [6, 3]
    assert len(blocks.launch) == 2
    times = blocks.seconds()
    assert 0 < times["launch"] <= times["processor_span"]
    blocks.clear()
    assert (blocks.rows, blocks.seconds()["launch"]) == ([], 0)
