"""Generated tasks with exact answers, as OpenAI chat requests."""

from __future__ import annotations

from collections.abc import Callable

from . import clips, detail, dialogue, history, pages, screens, video
from .base import Media, Sample, Split, Turn
from .draw import COLOURS, LABELS, SHAPES
from .screens import sample

GENERATORS: dict[str, Callable[[Split, int], Sample]] = {
    "screens": screens.sample,
    "clips": clips.sample,
    "pages": pages.sample,
    "history": history.sample,
    "video": video.sample,
    "detail": detail.sample,
    "dialogue": dialogue.sample,
}

__all__ = ["COLOURS", "GENERATORS", "LABELS", "SHAPES", "Media", "Sample", "Split", "Turn", "sample"]
