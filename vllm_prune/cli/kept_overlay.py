"""Kept visual tokens drawn over the picture that they are of: one panel per budget, dropped tokens dimmed."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PANEL_PIXELS = 560
SMALLEST_PANEL = 240
HEADING, MARGIN = 26, 10
PAPER, INK, EDGE = (255, 255, 255), (20, 20, 20), (255, 193, 7)
# Dropped tokens: grey, and this much of it against black.
DIMMED = 0.35


@dataclass(frozen=True)
class Panel:
    """One budget's panel: its heading, and the item as `usage.pruning.visual.items` has it, None without one."""

    heading: str
    item: dict[str, Any] | None


def kept_cells(item: dict[str, Any] | None) -> np.ndarray | None:
    """Kept tokens of a picture, bool [rows, columns]; None where the server does not know them."""
    if item is None or item["kept"] is None:
        return None
    frames, rows, cols = item["grid"]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(item["kept"]), dtype=np.uint8))
    cells: np.ndarray = bits[: frames * rows * cols].astype(bool).reshape(frames * rows, cols)
    return cells


def draw(picture: Image.Image, panels: Sequence[Panel]) -> Image.Image:
    """All panels side by side.

    Args:
        picture: the picture that was sent, upright.
        panels: from left to right.
    """
    scale = min(1.0, PANEL_PIXELS / max(picture.size))
    scale = max(scale, SMALLEST_PANEL / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    width = max(size[0], SMALLEST_PANEL)
    sheet = Image.new("RGB", (MARGIN + (width + MARGIN) * len(panels), size[1] + HEADING + 2 * MARGIN), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for number, panel in enumerate(panels):
        left = MARGIN + number * (width + MARGIN)
        pen.text((left, MARGIN), panel.heading, INK, font)
        cells = kept_cells(panel.item)
        sheet.paste(small if cells is None else overlaid(small, cells), (left, MARGIN + HEADING))
    return sheet


def overlaid(picture: Image.Image, cells: np.ndarray) -> Image.Image:
    """The picture with the cells that are not kept dimmed, and a line around those that are.

    Args:
        picture: RGB.
        cells: bool [rows, columns], spread evenly over the picture, as processors resize it before they cut it up.
    """
    dark = picture.convert("L").point(lambda level: int(level * DIMMED)).convert("RGB")
    rows, cols = cells.shape
    across = [round(col * picture.width / cols) for col in range(cols + 1)]
    down = [round(row * picture.height / rows) for row in range(rows + 1)]
    pen = ImageDraw.Draw(dark)
    for row, col in np.argwhere(cells):
        box = (across[col], down[row], across[col + 1], down[row + 1])
        dark.paste(picture.crop(box), box[:2])
    for row, col in np.argwhere(cells):
        left, top, right, bottom = across[col], down[row], across[col + 1] - 1, down[row + 1] - 1
        sides = {
            (row - 1, col): (left, top, right, top),
            (row + 1, col): (left, bottom, right, bottom),
            (row, col - 1): (left, top, left, bottom),
            (row, col + 1): (right, top, right, bottom),
        }
        for (r, c), line in sides.items():
            # Only where kept meets dropped, so that whole regions have one outline.
            if 0 <= r < rows and 0 <= c < cols and not cells[r, c]:
                pen.line(line, EDGE)
    return dark
