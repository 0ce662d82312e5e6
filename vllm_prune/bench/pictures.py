"""Screenshots for a load test without data of its own."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np

QUESTION = "Describe what is on this screen."


def screens(width: int, height: int, seed: int) -> Iterator[str]:
    """Endless different screenshots as PNG data URLs, so that no cache answers for the vision tower.

    Args:
        width, height: in pixels, at least 56.
        seed: equal seeds give equal pictures.
    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    while True:
        page = np.full((height, width, 3), rng.integers(200, 256, 3), dtype=np.uint8)
        for _ in range(max(8, width * height // 20_000)):
            top, left = int(rng.integers(0, height - 28)), int(rng.integers(0, width - 42))
            page[top : top + 28, left : left + 84] = rng.integers(0, 256, 3)
        data = io.BytesIO()
        Image.fromarray(page).save(data, "PNG", compress_level=1)
        yield "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def messages(picture: str) -> list[dict[str, object]]:
    """A chat about one picture."""
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": parts}]
