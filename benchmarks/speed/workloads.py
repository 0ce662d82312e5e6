"""What requests ask: a long video, one large screenshot, five of them, a long answer, text, and all of these mixed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np

from .media import screens, videos

Chat = list[dict[str, Any]]
WORDS = ("page", "button", "open", "blue", "menu", "row", "click", "next", "left", "search", "gear", "table")


@dataclass(frozen=True)
class Workload:
    """One kind of request.

    Attributes:
        name: as results name it.
        tokens: length of the answer.
        screens: rows and columns of each screenshot, in visual tokens.
        video: frames, and rows and columns of a frame in visual tokens.
        words: of text in the prompt, beside the question.
        shared: every request shows the same media, which vLLM encodes once, and only its text differs.
        parts: workloads that take turns; the other attributes are then not used.
    """

    name: str
    tokens: int
    screens: tuple[tuple[int, int], ...] = ()
    video: tuple[int, int, int] | None = None
    words: int = 0
    shared: bool = False
    parts: tuple[Workload, ...] = ()

    @property
    def visual_tokens(self) -> int:
        """Before pruning; one token covers two frames of a video. The largest of a mix."""
        if self.parts:
            return max(part.visual_tokens for part in self.parts)
        frames, rows, cols = self.video or (0, 0, 0)
        return sum(a * b for a, b in self.screens) + frames // 2 * rows * cols

    @property
    def rows(self) -> int:
        """Upper bound of the rows that a request has in the KV cache, text and answer included."""
        if self.parts:
            return max(part.rows for part in self.parts)
        return self.visual_tokens + 2 * self.words + 64 * (1 + len(self.screens)) + self._timestamps + self.tokens

    @property
    def _timestamps(self) -> int:
        """Text that some models put before each step of a video."""
        return 16 * (self.video[0] // 2) if self.video else 0

    @property
    def media(self) -> frozenset[str]:
        """Kinds of media in a request: "image", "video"."""
        kinds = {"image": bool(self.screens), "video": self.video is not None}
        return frozenset(kind for kind, used in kinds.items() if used).union(*(part.media for part in self.parts))

    def answering(self, tokens: int) -> Workload:
        """The same requests with answers of another length."""
        return replace(self, tokens=tokens)

    def chats(self, cell: int, seed: int) -> Iterator[Chat]:
        """Endless different requests' messages.

        Args:
            cell: pixels per side of a visual token.
            seed: equal seeds give equal requests.
        """
        if self.parts:
            for source in cycle([part.chats(cell, seed + i) for i, part in enumerate(self.parts)]):
                yield next(source)
        sources = [screens((rows * cell, cols * cell), seed + i) for i, (rows, cols) in enumerate(self.screens)]
        frames, rows, cols = self.video or (0, 0, 0)
        films = videos(frames, (rows * cell, cols * cell), cell, seed) if self.video else None
        rng = np.random.default_rng(seed)
        content: list[dict[str, Any]] = []
        while True:
            if not (self.shared and content):
                content = [{"type": "image_url", "image_url": {"url": next(source)}} for source in sources]
                if films is not None:
                    content.append({"type": "video_url", "video_url": {"url": next(films)}})
            # Random words come first, so that no two prompts share a prefix.
            text = " ".join(rng.choice(WORDS, self.words)) + " what should be clicked next ?"
            yield [{"role": "user", "content": [{"type": "text", "text": text}, *content]}]


@dataclass(frozen=True)
class Sizes:
    """Sizes of all workloads.

    Attributes:
        screen: rows and columns of the one large screenshot, in visual tokens.
        turn: of each of five screenshots.
        video: frames, rows and columns.
        words: of the text-only prompt.
        answer, long_answer: tokens.
    """

    screen: tuple[int, int]
    turn: tuple[int, int]
    video: tuple[int, int, int]
    words: int
    answer: int
    long_answer: int


CPU = Sizes((20, 30), (12, 16), (32, 8, 8), 100, 8, 128)
GPU = Sizes((60, 64), (32, 40), (64, 10, 11), 2000, 32, 1024)
TINY = Sizes((4, 6), (3, 4), (4, 3, 4), 20, 12, 24)


def workloads(sizes: Sizes) -> dict[str, Workload]:
    """All workloads by name."""
    single = [
        Workload("video", sizes.answer, video=sizes.video),
        Workload("screenshot", sizes.answer, screens=(sizes.screen,)),
        Workload("five screenshots", sizes.answer, screens=(sizes.turn,) * 5),
        Workload("text", sizes.answer, words=sizes.words),
    ]
    long = Workload("long answer", sizes.long_answer, screens=(sizes.turn,))
    mix = Workload("mix", sizes.answer, parts=tuple(single))
    return {one.name: one for one in (*single, long, mix)}
