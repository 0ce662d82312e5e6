"""OpenAI messages with a small picture."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image


def picture(width: int = 168, height: int = 168, colour: tuple[int, int, int] = (9, 99, 9)) -> str:
    """A PNG as a data URL."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


IMAGE: dict[str, Any] = {"type": "image_url", "image_url": {"url": picture()}}


def message(text: str, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    """One user message."""
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
