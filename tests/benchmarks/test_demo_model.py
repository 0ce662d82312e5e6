"""The bundled checkpoint is the one it claims to be, and training sees what the server will send."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.demo_model.batches import CLASSES, IGNORE, PADS, cell_classes, chat_of, collate, kept_cells, patches_of
from benchmarks.demo_model.cells import STATES, histories
from benchmarks.demo_model.evaluate import CHECKPOINT, FOLDER, Judge, accuracy, held_out, wilson
from benchmarks.demo_model.muon import orthogonal
from benchmarks.tasks import GENERATORS, enlarged, sample, video


@pytest.fixture(scope="module")
def words() -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(CHECKPOINT)


def test_patches_are_the_processors() -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    medium = sample("test", 3).media[0]
    found = processor.image_processor(images=[medium.frames[0]], return_tensors="np")
    assert found["image_grid_thw"].tolist() == [[1, medium.grid[1] * 2, medium.grid[2] * 2]]
    np.testing.assert_allclose(np.asarray(found["pixel_values"]), patches_of(medium), atol=1e-5)


@pytest.mark.parametrize("task", sorted(GENERATORS))
def test_classes_match_elements(task: str) -> None:
    for medium in GENERATORS[task]("test", 4).media:
        classes = cell_classes(medium).reshape(*medium.grid, len(CLASSES))
        assert (classes[..., 2] > 0).sum() == sum(map(len, medium.elements))
        assert (classes.reshape(-1, len(CLASSES)).max(0) < CLASSES).all()


@pytest.mark.parametrize("task", sorted(GENERATORS))
def test_chats_are_the_templates(words: object, task: str) -> None:
    one = GENERATORS[task]("test", 5)
    tokens, asked = chat_of(one, words)
    messages = one.to_chat()
    for message in messages:
        if message["role"] == "user":
            message["content"] = [{"type": part["type"].removesuffix("_url"), **part} for part in message["content"]]
    text = words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)  # type: ignore[attr-defined]
    pads = words.convert_tokens_to_ids(list(PADS))  # type: ignore[attr-defined]
    whole = [token for token in tokens[: asked[-1].start + 1] if token not in pads]
    assert whole == [token for token in words(text)["input_ids"] if token not in pads]  # type: ignore[operator]


def test_labels_are_the_answers(words: object) -> None:
    one = GENERATORS["dialogue"]("test", 6)
    batch = collate([one, one], words, random.Random(0))
    for asked in batch.asked:
        answer = batch.labels[asked.row, asked.start : asked.end]
        assert words.decode(answer) == one.turns[asked.turn].answer + "<|im_end|>"  # type: ignore[attr-defined]
    assert int((batch.labels != IGNORE).sum()) == sum(one.end - one.start for one in batch.asked)
    assert int(batch.visual.sum()) == batch.cells.shape[0] == batch.kept.numel()
    assert torch.isin(batch.tokens[batch.visual], torch.tensor(words.convert_tokens_to_ids(list(PADS)))).all()  # type: ignore[attr-defined]


def test_text_goes_on_after_the_largest_coordinate(words: object) -> None:
    one = video.sample("test", 0, steps=4)
    batch = collate([one], words)
    times = batch.positions[0, 0][batch.visual[0]].view(one.media[0].grid)[:, 0, 0]
    assert times.diff().tolist() == [2, 2, 2]
    _, rows, cols = one.media[0].grid
    start = int(batch.visual[0].nonzero()[0])
    after = int(batch.visual[0].nonzero()[-1]) + 1
    assert batch.positions[:, 0, after].tolist() == [start + max(6, rows - 1, cols - 1) + 1] * 3


def test_states_say_what_happened() -> None:
    for kind in ("direction", "when"):
        one = video.sample("test", 1, kind)
        places, states = histories(one)
        assert {STATES[state] for state in states if state > 0} >= {one.answer if kind == "direction" else "new"}
        assert sorted(set(places.tolist())) == list(range(one.media[0].grid[0]))
        assert kept_cells(one).sum() == sum(map(len, one.media[0].elements))


@given(number=st.integers(0, 10_000), scale=st.floats(1.0, 2.2), clip=st.booleans())
def test_larger_elements_are_labelled_and_held_whole(number: int, scale: float, clip: bool) -> None:
    one = (enlarged.clip if clip else enlarged.screen)("train", number, scale=scale)
    (medium,) = one.media
    classes = cell_classes(medium).reshape(*medium.grid, len(CLASSES))
    for step, elements in enumerate(medium.elements):
        named = [(step, *cell) for e in elements for cell in medium.covered(e.row, e.col)]
        assert len(set(named)) == len(named) >= len(elements)
        assert {(step, *cell) for cell in np.argwhere(classes[step, ..., :2].sum(-1) > 0).tolist()} == set(named)
        assert (classes[step, ..., 2] > 0).sum() == len(elements)
    held = kept_cells(one).reshape(medium.grid)
    assert all(held[target[1:]] for target in one.targets)
    assert held.sum() == len({target[1:] for target in one.targets}) or clip


def test_updates_are_nearly_orthogonal() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(2, 64, 96))[0])
    assert 0.4 < values.min() <= values.max() < 1.5
    assert orthogonal(torch.randn(1, 96, 64)).shape == (1, 96, 64)


def test_checkpoint_is_small_and_bfloat16() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 16 << 20
    with (CHECKPOINT / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}


def test_stated_accuracy_meets_the_bar() -> None:
    tasks = json.loads((FOLDER / "evaluation.json").read_text())["tasks"]
    card = Path(FOLDER / "README.md").read_text()
    assert set(tasks) >= set(GENERATORS)
    assert tasks["screens"]["accuracy"] >= 0.99
    for name in GENERATORS:
        row = tasks[name]
        assert row["n"] >= 100
        low, high = wilson(row["right"], row["n"])
        assert [low, high] == pytest.approx(row["interval"])
        assert f"{row['accuracy']:.1%}" in card


@pytest.mark.slow
def test_the_checkpoint_still_answers() -> None:
    torch.set_num_threads(1)
    found = accuracy(Judge(), held_out(64, ["screens"]))
    assert found["screens"]["accuracy"] >= 0.9
