"""The generator says what it draws, and the bundled checkpoint is the one it claims to be."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.demo_model.batches import cell_classes, patches_of
from benchmarks.demo_model.evaluate import CHECKPOINT, FOLDER, Judge, accuracy, held_out, wilson
from benchmarks.tasks import Sample, sample
from benchmarks.tasks.draw import CELL
from benchmarks.tasks.screens import IMAGE_TASKS, VIDEO_TASKS

NUMBERS = st.integers(0, 10_000)


def pixels(one: Sample) -> list[bytes]:
    return [frame.tobytes() for frame in one.frames]


@given(number=NUMBERS, task=st.sampled_from([*IMAGE_TASKS, *VIDEO_TASKS]))
def test_equal_arguments_give_equal_samples(number: int, task: str) -> None:
    first, again = (sample("test", number, task) for _ in range(2))  # type: ignore[arg-type]
    assert pixels(first) == pixels(again)
    assert (first.question, first.answer, first.targets) == (again.question, again.answer, again.targets)


def test_splits_do_not_meet() -> None:
    screens = {split: {pixels(sample(split, i))[0] for i in range(200)} for split in ("train", "validation", "test")}
    assert all(len(found) == 200 for found in screens.values())
    assert not screens["train"] & screens["test"]
    assert not screens["train"] & screens["validation"]
    assert not screens["validation"] & screens["test"]


@given(number=NUMBERS, task=st.sampled_from([*IMAGE_TASKS, *VIDEO_TASKS]))
def test_targets_hold_the_answer(number: int, task: str) -> None:
    one = sample("test", number, task)  # type: ignore[arg-type]
    steps, rows, cols = one.grid
    assert one.targets
    for step, row, col in one.targets:
        assert 0 <= step < steps
        assert 0 <= row < rows
        assert 0 <= col < cols
        element = next(e for e in one.elements[step] if (e.row, e.col) == (row, col))
        assert one.answer in (element.shape, element.colour, element.mark)
        cell = np.asarray(one.frames[2 * step if steps > 1 else 0])[
            row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL
        ]
        assert cell.std() > 5


@given(number=NUMBERS)
def test_the_answer_is_unique(number: int) -> None:
    one = sample("test", number)
    looks = [(e.shape, e.colour) for e in one.elements[0] if e.shape]
    assert len({shape for shape, _ in looks}) == len({colour for _, colour in looks}) == len(looks)
    marks = [e.mark for e in one.elements[0]]
    assert len(set(marks)) == len(marks)


def test_patches_are_the_processors() -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    one = sample("test", 3)
    found = processor.image_processor(images=[one.frames[0]], return_tensors="np")
    assert found["image_grid_thw"].tolist() == [[1, one.grid[1] * 2, one.grid[2] * 2]]
    np.testing.assert_allclose(np.asarray(found["pixel_values"]), patches_of(one), atol=1e-5)


def test_cell_classes_match_elements() -> None:
    one = sample("test", 4)
    classes = cell_classes(one).reshape(*one.grid, 3)
    assert (classes[..., 2] > 0).sum() == len(one.elements[0])


def test_chat_form_carries_the_media() -> None:
    image, video = sample("test", 1).to_chat(), sample("test", 1, "moved").to_chat()
    assert image[0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert video[0]["content"][0]["video_url"]["url"].startswith("data:video/mp4;base64,")


def test_checkpoint_is_small_and_bfloat16() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 8 << 20
    with (CHECKPOINT / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}


def test_stated_accuracy_meets_the_bar() -> None:
    tasks = json.loads((FOLDER / "evaluation.json").read_text())["tasks"]
    assert tasks["images"]["n"] >= 500
    assert tasks["images"]["accuracy"] >= 0.85
    low, high = wilson(tasks["images"]["right"], tasks["images"]["n"])
    assert [low, high] == pytest.approx(tasks["images"]["interval"])
    card = Path(FOLDER / "README.md").read_text()
    assert f"{tasks['images']['accuracy']:.1%}" in card


@pytest.mark.slow
def test_the_checkpoint_still_answers() -> None:
    import torch

    torch.set_num_threads(1)
    found = accuracy(Judge(), held_out(64, 0))
    assert found["images"]["accuracy"] >= 0.8
