"""The generators say what they draw, and a blind guess is no better than chance."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.tasks import ENLARGED, GENERATORS, Sample, dialogue, history, pages, sample, screens, video
from benchmarks.tasks.base import Media
from benchmarks.tasks.draw import CELL, Element

pytestmark = pytest.mark.slow

NUMBERS = st.integers(0, 10_000)
TASKS = st.sampled_from(sorted(GENERATORS))
DRAWN = sorted(set(GENERATORS) - {"pages"})


def pixels(one: Sample) -> list[bytes]:
    return [frame.tobytes() for medium in one.media for frame in medium.frames]


def at(medium: Media, step: int, row: int, col: int) -> Element:
    return next(e for e in medium.elements[step] if (e.row, e.col) == (row, col))


@given(number=NUMBERS, task=TASKS)
def test_equal_arguments_give_equal_samples(number: int, task: str) -> None:
    first, again = (GENERATORS[task]("test", number) for _ in range(2))
    assert pixels(first) == pixels(again)
    assert first.turns == again.turns


@pytest.mark.parametrize("task", DRAWN)
def test_splits_do_not_meet(task: str) -> None:
    drawn = {
        split: {pixels(GENERATORS[task](split, i))[0] for i in range(60)} for split in ("train", "validation", "test")
    }
    assert all(len(found) == 60 for found in drawn.values())
    assert not drawn["train"] & drawn["test"]
    assert not drawn["train"] & drawn["validation"]
    assert not drawn["validation"] & drawn["test"]


@given(number=NUMBERS, task=TASKS)
def test_targets_hold_the_answer(number: int, task: str) -> None:
    one = GENERATORS[task]("test", number)
    assert one.targets
    for place, step, row, col in one.targets:
        medium = one.media[place]
        steps, rows, cols = medium.grid
        assert 0 <= step < steps
        assert 0 <= row < rows
        assert 0 <= col < cols
        element = at(medium, step, row, col)
        if one.kind not in ("direction", "when", "count", "first"):
            assert one.answer in (element.shape, element.colour, element.mark, element.mark + element.digit)
        pixel = np.asarray(medium.frames[2 * step if medium.video else 0])
        assert pixel[row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL].std() > 5


@given(number=NUMBERS, task=st.sampled_from(["screens", "pages"]))
def test_the_answer_is_unique(number: int, task: str) -> None:
    elements = GENERATORS[task]("test", number).media[0].elements[0]
    looks = [(e.shape, e.colour) for e in elements if e.shape]
    assert len({shape for shape, _ in looks}) == len({colour for _, colour in looks}) == len(looks)
    assert len({e.mark for e in elements}) == len(elements)


@given(number=NUMBERS)
def test_a_video_does_what_its_answer_says(number: int) -> None:
    one = video.sample("test", number)
    steps = [{e.shape: (e.row, e.col) for e in step if e.shape} for step in one.media[0].elements]
    born = {shape: next(i for i, step in enumerate(steps) if shape in step) for shape in steps[-1]}
    new = {shape: step for shape, step in born.items() if step}
    moved = [shape for shape in steps[0] if steps[0][shape] != steps[-1][shape]]
    if one.kind == "appeared":
        assert list(new) == [one.answer]
    elif one.kind == "first":
        assert min(new, key=lambda shape: new[shape]) == one.answer
        assert len(set(new.values())) == len(new) > 1
    elif one.kind == "when":
        assert one.answer == str(new[one.question.split()[-3]] + 1)
    elif one.kind == "count":
        assert one.answer == str(len(new))
    elif one.kind == "moved":
        assert moved == [one.answer]
    else:
        (shape,) = moved
        down, right = np.sign(np.subtract(steps[-1][shape], steps[0][shape]))
        assert video.WAYS[one.answer] == (down, right)


@given(number=NUMBERS)
def test_the_wrong_picture_gives_a_wrong_answer(number: int) -> None:
    one = history.sample("test", number)
    asked, plain = one.targets[0][0], one.question.split(" : ")[1]
    found = {
        i: t.answer for i, m in enumerate(one.media) for t in screens.questions(m.elements[0]) if t.question == plain
    }
    assert found[asked] == one.answer
    assert len(set(found.values())) > 1


def test_a_session_changes_little() -> None:
    for i in range(40):
        steps = [set(m.elements[0]) for m in history.sample("test", i).media]
        assert all(1 <= len(now - before) <= history.CHANGES for before, now in itertools.pairwise(steps))


@pytest.mark.parametrize("task", sorted(GENERATORS))
def test_answers_are_balanced(task: str) -> None:
    answers: dict[str, Counter[str]] = {}
    for i in range(400):
        one, films = GENERATORS[task]("test", i), task in ("video", "clips")
        # What a blind guesser has is the text; steps and shapes of a question are replaced by one word.
        words = " ".join(one.question.split()[: 5 if films else 4]) if one.kind != "code" else one.kind
        form = words if films else one.kind if task in ("screens", "pages", "detail") else one.turns[-1].answer
        if task in ("history", "dialogue"):
            form = "colour" if "colour" in one.question else "shape" if "shape" in one.question else "click"
        answers.setdefault(form, Counter())[one.answer] += 1
    for form, found in answers.items():
        n = found.total()
        if n >= 30:
            chance = {"which way did the": 0.25, "at which step did the": 0.25, "how many shapes appeared ?": 1 / 3}
            expected = max([share for name, share in chance.items() if form.startswith(name[:15])] or [1 / 8])
            bound = expected + 4 * (expected * (1 - expected) / n) ** 0.5
            assert found.most_common(1)[0][1] / n <= bound, (form, found.most_common(3))


def test_chats_are_valid_and_carry_the_media() -> None:
    for task in GENERATORS:
        one = GENERATORS[task]("test", 1)
        messages = one.to_chat()
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(one.turns) - 1) + ["user"]
        parts = [part for m in messages if m["role"] == "user" for part in m["content"]]
        urls = [part[part["type"]]["url"] for part in parts if part["type"] != "text"]
        assert len(urls) == len(one.media)
        kind = "data:video/mp4;base64," if task in ("video", "clips") else "data:image/png;base64,"
        assert all(url.startswith(kind) for url in urls)
        assert parts[-1] == {"type": "text", "text": one.question}


def test_a_dialogue_brings_a_picture_in_every_turn() -> None:
    messages = dialogue.sample("test", 2, "third").to_chat()
    shown = [[p["text"] for p in m["content"] if p["type"] == "text"] for m in messages if m["role"] == "user"]
    assert [texts[0] for texts in shown] == ["picture 1 ", "picture 2 ", "picture 3 "]
    assert sample("test", 1).to_chat()[0]["content"][0]["type"] == "image_url"


def test_rendered_pages_are_small_and_their_boxes_inside() -> None:
    files = list(pages.folder("test").iterdir())
    assert sum(file.stat().st_size for file in files) < 2.5e6
    found = pages.index("test")
    assert len(found) >= 140
    assert {entry["kind"] for entry in found.values()} == {"form", "table", "menu", "dialog", "toolbar", "map"}
    for number, entry in found.items():
        rows, cols = entry["grid"]
        assert pages.picture("test", number).size == (cols * CELL, rows * CELL)
        places = [(row, col) for row, col, *_ in entry["elements"]]
        assert len(set(places)) == len(places)
        assert all(0 <= row < rows and 0 <= col < cols for row, col in places)


@pytest.mark.parametrize("task", sorted(ENLARGED))
@given(number=NUMBERS)
def test_half_the_size_gives_the_smaller_sample_back(task: str, number: int) -> None:
    one = ENLARGED[task]("test", number)
    (medium,) = one.media
    small = GENERATORS["clips" if medium.video else "screens"]("test", number)
    assert [(turn.question, turn.answer) for turn in one.turns] == [
        (turn.question, turn.answer) for turn in small.turns
    ]
    assert len(one.targets) == 4 * len(small.targets)
    for large, frame in zip(medium.frames, small.media[0].frames, strict=True):
        # A mirrored picture differs by more than 0.19 of the pixels' deviation.
        back = np.asarray(large.resize(frame.size, Image.Resampling.BOX), dtype=float)
        assert np.abs(back - np.asarray(frame)).mean() < 0.1 * np.asarray(frame).std()


def test_sizes_reach_from_200_to_2000_visual_tokens() -> None:
    sizes = [int(np.prod(GENERATORS["detail"]("test", i).media[0].grid)) for i in range(100)]
    assert min(sizes) < 250
    assert 1500 < max(sizes) <= 2000
