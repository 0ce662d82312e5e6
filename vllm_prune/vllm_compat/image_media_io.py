"""`ImageMediaIO`: a step before vLLM converts a picture's mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def convert_after(media_io: Any, step: Callable[[Any, bytes], Any]) -> None:
    """Let one media IO pass every decoded picture through a step, then convert it.

    Args:
        media_io: vLLM's `ImageMediaIO`.
        step: from a picture and its file to a picture; what it raises is raised to the caller of the media IO.
    """
    convert, load = media_io._convert_image_mode, media_io.load_bytes

    def load_bytes(data: bytes) -> Any:
        media_io._convert_image_mode = lambda image: convert(step(image, data))
        return load(data)

    media_io.load_bytes = load_bytes
