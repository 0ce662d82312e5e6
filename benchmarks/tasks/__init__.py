"""Generated tasks with exact answers, as OpenAI chat requests."""

from __future__ import annotations

from collections.abc import Callable

from . import clips, detail, dialogue, enlarged, history, pages, screens, video
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
ENLARGED: dict[str, Callable[[Split, int], Sample]] = {"enlarged": enlarged.screen, "enlarged_clips": enlarged.clip}
"""Tasks of a demo model of their own, on which pruning is compared with plain resizing."""

__all__ = ["COLOURS", "ENLARGED", "GENERATORS", "LABELS", "SHAPES", "Media", "Sample", "Split", "Turn", "sample"]
