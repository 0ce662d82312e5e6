"""Real PNG, JPEG and MP4 bytes, as data URLs, and OpenAI messages around them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from PIL import Image


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A flat page with a few coloured blocks, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    page = np.full((height, width, 3), 245, dtype=np.uint8)
    for _ in range(6):
        y, x = int(rng.integers(0, max(height - 20, 1))), int(rng.integers(0, max(width - 20, 1)))
        page[y : y + 24, x : x + 24] = rng.integers(0, 255, 3)
    return page


def png(height: int, width: int, seed: int = 0) -> bytes:
    """A PNG file."""
    data = io.BytesIO()
    Image.fromarray(pixels(height, width, seed)).save(data, "PNG")
    return data.getvalue()


def jpeg(height: int, width: int, seed: int = 0) -> bytes:
    """A JPEG file."""
    data = io.BytesIO()
    Image.fromarray(pixels(height, width, seed)).save(data, "JPEG", quality=92)
    return data.getvalue()


def mp4(frames: int, height: int, width: int, seed: int = 0, rate: int = 4) -> bytes:
    """An MP4 file (MPEG-4 part 2) of a block that moves over a page."""
    data = io.BytesIO()
    page = pixels(height, width, seed)
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            frame = page.copy()
            frame[8:36, (8 * i) % (width - 28) : (8 * i) % (width - 28) + 28] = (220, 40, 40)
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return data.getvalue()


def data_url(kind: str, data: bytes) -> str:
    """`data:` URL of a media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    """Content part of an image."""
    return {"type": "image_url", "image_url": {"url": data_url(kind, data)}}


def video_part(data: bytes) -> dict[str, Any]:
    """Content part of a video, as vLLM takes it."""
    return {"type": "video_url", "video_url": {"url": data_url("video/mp4", data)}}


def text_part(text: str) -> dict[str, Any]:
    """Content part of text."""
    return {"type": "text", "text": text}


def user(parts: Sequence[dict[str, Any]], text: str = "what is on the screen?") -> list[dict[str, Any]]:
    """One user message: the parts, then a question."""
    return [{"role": "user", "content": [*parts, text_part(text)]}]
