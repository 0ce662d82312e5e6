"""What every generated task is made of: pictures and videos, turns of a chat, and an exact answer."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from .draw import CELL, Element

Split = Literal["train", "validation", "test"]
SPLITS = {"train": 0, "validation": 1, "test": 2}
FRAMES_PER_STEP = 2
EDGE = 1e-6
"""Of a cell: what rounding may add to a border that lies on the border of a cell."""
Target = tuple[int, int, int, int]


@dataclass(frozen=True)
class Media:
    """One picture or one video.

    Attributes:
        frames: the picture, or the frames of a video (pairs of equal frames, as the tower merges pairs).
        elements: what stands on each temporal step's screen.
        video: whether it is sent as a video.
        raster: rows and columns of the elements' places where those are larger than a visual token, else None.
    """

    frames: tuple[Image.Image, ...]
    elements: tuple[tuple[Element, ...], ...]
    video: bool = False
    raster: tuple[int, int] | None = None

    @property
    def grid(self) -> tuple[int, int, int]:
        """Temporal steps, rows and columns of merged cells."""
        width, height = self.frames[0].size
        return len(self.elements), height // CELL, width // CELL

    @property
    def scale(self) -> tuple[float, float]:
        """Visual tokens per place of an element, down and across."""
        _, rows, cols = self.grid
        return (rows / self.raster[0], cols / self.raster[1]) if self.raster else (1.0, 1.0)

    def touched(self, row: int, col: int) -> list[tuple[int, int]]:
        """Cells that the element at a place overlaps."""
        (top, bottom), (left, right) = (
            (math.floor(place * scale + EDGE), math.ceil((place + 1) * scale - EDGE))
            for place, scale in zip((row, col), self.scale, strict=True)
        )
        return [(r, c) for r in range(top, bottom) for c in range(left, right)]

    def covered(self, row: int, col: int) -> list[tuple[int, int]]:
        """Cells whose centre the element at a place covers; no two elements share one."""
        (top, bottom), (left, right) = (
            (math.ceil(place * scale - 0.5 - EDGE), math.ceil((place + 1) * scale - 0.5 - EDGE))
            for place, scale in zip((row, col), self.scale, strict=True)
        )
        return [(r, c) for r in range(top, bottom) for c in range(left, right)]


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        kind: what is asked.
        question, answer: text.
        targets: cells that hold the answer, (medium, step, row, col).
        shown: media that come with this turn, before the question.
    """

    kind: str
    question: str
    answer: str
    targets: tuple[Target, ...]
    shown: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A chat whose last turn is to be answered.

    Attributes:
        task: family of the sample.
        media: pictures and videos in the order in which they are shown.
        turns: questions; all but the last are sent with their answers.
        numbered: whether `picture 1`, `picture 2`, ... is written before the media.
    """

    task: str
    media: tuple[Media, ...]
    turns: tuple[Turn, ...]
    numbered: bool = False

    @property
    def kind(self) -> str:
        """What the last turn asks."""
        return self.turns[-1].kind

    @property
    def question(self) -> str:
        """Text of the last turn."""
        return self.turns[-1].question

    @property
    def answer(self) -> str:
        """Expected answer of the last turn."""
        return self.turns[-1].answer

    @property
    def targets(self) -> tuple[Target, ...]:
        """Cells that hold the last answer."""
        return self.turns[-1].targets

    @property
    def image(self) -> Image.Image:
        """The first picture."""
        return self.media[0].frames[0]

    def parts(self, turn: Turn) -> list[str | int]:
        """A user message: texts, and media as numbers."""
        found: list[str | int] = []
        for number in turn.shown:
            found += [f"picture {number + 1} ", number] if self.numbered else [number]
        return [*found, turn.question]

    def to_chat(self) -> list[dict[str, Any]]:
        """OpenAI messages up to the last question; a video is sent as MP4."""
        messages: list[dict[str, Any]] = []
        for turn in self.turns:
            content = [self._part(part) for part in self.parts(turn)]
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": turn.answer}]
        return messages[:-1]

    def _part(self, part: str | int) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        one = self.media[part]
        if one.video:
            return {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + _mp4(one.frames)}}
        return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + png(one.frames[0])}}


def still(image: Image.Image, elements: Iterable[Element]) -> Media:
    """A picture as a medium."""
    return Media((image,), (tuple(elements),))


def film(screens: Sequence[Image.Image], elements: Sequence[Sequence[Element]]) -> Media:
    """A video with one temporal step per screen."""
    frames = tuple(screen for screen in screens for _ in range(FRAMES_PER_STEP))
    return Media(frames, tuple(tuple(step) for step in elements), video=True)


def png(image: Image.Image) -> str:
    """Base64 of a PNG."""
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
