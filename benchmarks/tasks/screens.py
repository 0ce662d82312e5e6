"""Screens with icons and labelled buttons, short screen videos, and questions about their content.

Questions ask what something is or which mark is printed at it, never where it is: neither the tower nor the
decoder of the family has absolute positions.
"""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from .draw import CELL, COLOURS, LABELS, MARKS, PAGES, SHAPES, Element, render

__all__ = ["COLOURS", "LABELS", "SHAPES", "Sample", "sample"]

Task = Literal["colour", "shape", "icon", "button", "appeared", "moved"]
IMAGE_TASKS: tuple[Task, ...] = ("colour", "shape", "icon", "button")
VIDEO_TASKS: tuple[Task, ...] = ("appeared", "moved")
Split = Literal["train", "validation", "test"]
_SPLITS = {"train": 0, "validation": 1, "test": 2}
FRAMES_PER_STEP = 2


@dataclass(frozen=True)
class Sample:
    """One question with its exact answer.

    Attributes:
        task: what is asked.
        frames: one picture, or the frames of a video (pairs of equal frames, as the tower merges pairs).
        elements: what stands on each temporal step's screen.
        question, answer: text.
        targets: cells that hold the answer, (step, row, col).
    """

    task: Task
    frames: tuple[Image.Image, ...]
    elements: tuple[tuple[Element, ...], ...]
    question: str
    answer: str
    targets: tuple[tuple[int, int, int], ...]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Temporal steps, rows and columns of merged cells."""
        width, height = self.frames[0].size
        return len(self.elements), height // CELL, width // CELL

    def to_chat(self) -> list[dict[str, Any]]:
        """OpenAI messages; a video is sent as MP4."""
        if len(self.elements) == 1:
            media = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + _png(self.frames[0])}}
        else:
            media = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + _mp4(self.frames)}}
        return [{"role": "user", "content": [media, {"type": "text", "text": self.question}]}]


def sample(
    split: Split, number: int, task: Task | None = None, size: tuple[int, int] | None = None, steps: int = 3
) -> Sample:
    """Sample `number` of a split; equal arguments give equal samples.

    Args:
        split: seeds of different splits never meet.
        number: index in the split.
        task: what to ask; drawn from the image tasks when absent.
        size: rows and columns of the screen in cells; drawn when absent.
        steps: temporal steps of a video.
    """
    rng = random.Random(f"{_SPLITS[split]}-{number}")
    drawn = rng.choice(IMAGE_TASKS)
    task = task or drawn
    rows, cols = size or (rng.randint(3, 9), rng.randint(4, 12))
    if task in VIDEO_TASKS:
        return _video(rng, task, rows, cols, steps)
    elements = _elements(rng, rows, cols)
    target, question, answer = _ask(rng, task, elements)
    image = render(rows, cols, elements, rng.choice(PAGES))
    return Sample(task, (image,), (tuple(elements),), question, answer, ((0, target.row, target.col),))


def _elements(rng: random.Random, rows: int, cols: int) -> list[Element]:
    """Icons with different shapes and different colours, buttons with different labels."""
    cells = [divmod(cell, cols) for cell in rng.sample(range(rows * cols), rows * cols)]
    icons = rng.randint(3, min(7, max(3, len(cells) // 3)))
    buttons = rng.randint(2, min(6, max(2, len(cells) // 4)))
    marks = rng.sample(MARKS, icons + buttons)
    looks = zip(rng.sample(SHAPES, icons), rng.sample(list(COLOURS), icons), strict=True)
    found = [Element(*cells.pop(), marks.pop(), shape=shape, colour=colour) for shape, colour in looks]
    found += [Element(*cells.pop(), marks.pop(), label=label) for label in rng.sample(LABELS, buttons)]
    return found


def _ask(rng: random.Random, task: Task, elements: Sequence[Element]) -> tuple[Element, str, str]:
    icons = [element for element in elements if element.shape]
    buttons = [element for element in elements if element.label]
    target = rng.choice(buttons if task == "button" else icons)
    if task == "colour":
        return target, f"what colour is the {target.shape} ?", target.colour
    if task == "shape":
        return target, f"what shape is {target.colour} ?", target.shape
    if task == "icon":
        return target, f"click the {target.colour} {target.shape}", target.mark
    return target, f"click {target.label}", target.mark


def _video(rng: random.Random, task: Task, rows: int, cols: int, steps: int) -> Sample:
    elements = [element for element in _elements(rng, rows, cols) if element.shape]
    actor = elements.pop()
    taken = {(element.row, element.col) for element in elements}
    free = [cell for cell in (divmod(i, cols) for i in range(rows * cols)) if cell not in taken]
    background = rng.choice(PAGES)
    if task == "appeared":
        since = rng.randint(1, steps - 1)
        shown = [[*elements, actor] if step >= since else list(elements) for step in range(steps)]
        question = "which shape appeared ?"
        targets = tuple((step, actor.row, actor.col) for step in range(since, steps))
    else:
        path = rng.sample(free, steps)
        moved = [Element(*cell, actor.mark, actor.shape, actor.colour) for cell in path]
        shown = [[*elements, place] for place in moved]
        question = "which shape moved ?"
        targets = tuple((step, *cell) for step, cell in enumerate(path))
    screens = [render(rows, cols, step, background) for step in shown]
    frames = tuple(screen for screen in screens for _ in range(FRAMES_PER_STEP))
    return Sample(task, frames, tuple(tuple(step) for step in shown), question, actor.shape, targets)


def _png(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def _mp4(frames: Sequence[Image.Image], rate: int = 2) -> str:
    """Nearly lossless H.264 at two frames per second, the rate at which the processor samples."""
    import av

    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv444p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return base64.b64encode(data.getvalue()).decode()
