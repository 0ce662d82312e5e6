"""Icons, buttons and badges, one 28-pixel cell each: one cell is one merged visual token of the Qwen-VL family."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 28
SHAPES = ("square", "circle", "triangle", "diamond", "cross", "bar", "ring", "star")
COLOURS = {
    "red": (214, 40, 40),
    "green": (34, 150, 60),
    "blue": (44, 80, 214),
    "yellow": (226, 190, 20),
    "purple": (140, 60, 180),
    "cyan": (30, 180, 200),
    "orange": (236, 124, 20),
    "black": (24, 24, 24),
}
LABELS = ("save", "open", "copy", "undo", "edit", "find", "quit", "help")
MARKS = "ABCDEFGHJKLMNPRSTUVWXYZ"
DIGITS = "0123456789"
PAGES = ((245, 245, 245), (232, 236, 242), (250, 244, 230), (225, 232, 225))


@dataclass(frozen=True)
class Element:
    """What stands in one cell: an icon (shape and colour), a button (label) or a badge (colour and code).

    Attributes:
        row, col: cell.
        mark: letter printed at the element; a badge's first character.
        shape: of an icon, otherwise empty.
        colour: of an icon or a badge, empty for a button.
        label: of a button, otherwise empty.
        digit: of a badge, its second character, otherwise empty.
    """

    row: int
    col: int
    mark: str
    shape: str = ""
    colour: str = ""
    label: str = ""
    digit: str = ""


def render(rows: int, cols: int, elements: Iterable[Element], background: tuple[int, int, int]) -> Image.Image:
    """A screen of `rows` x `cols` cells with its elements."""
    pixels = np.empty((rows * CELL, cols * CELL, 3), dtype=np.uint8)
    pixels[:] = background
    for element in elements:
        top, left = element.row * CELL, element.col * CELL
        pixels[top : top + CELL, left : left + CELL] = _cell(
            element.shape, element.colour, element.label, element.mark, element.digit, background
        )
    return Image.fromarray(pixels)


@lru_cache(maxsize=8192)
def _cell(shape: str, colour: str, label: str, mark: str, digit: str, background: tuple[int, int, int]) -> np.ndarray:
    """One drawn cell, uint8 [28, 28, 3]; drawing text is slow and cells repeat."""
    image = Image.new("RGB", (CELL, CELL), background)
    canvas = ImageDraw.Draw(image)
    if label:
        canvas.rectangle([1, 1, CELL - 2, CELL - 2], fill=(205, 210, 218), outline=(90, 90, 90))
        _text(canvas, 2, 2, label)
        # Marks stand inside one of the tower's 14-pixel patches.
        _text(canvas, 17, 14, mark)
    elif digit:
        canvas.rectangle([1, 1, CELL - 2, CELL - 2], fill=(255, 255, 255), outline=COLOURS[colour])
        canvas.rectangle([1, 15, CELL - 2, CELL - 2], fill=COLOURS[colour])
        _text(canvas, 5, 2, mark)
        _text(canvas, 17, 2, digit)
    else:
        _icon(canvas, 2, 2, shape, COLOURS[colour])
        _text(canvas, 19, 16, mark)
    return np.asarray(image)


def _text(canvas: ImageDraw.ImageDraw, left: int, top: int, text: str) -> None:
    canvas.text((left, top), text, fill=(0, 0, 0), font=ImageFont.load_default_imagefont())


def _icon(canvas: ImageDraw.ImageDraw, x: int, y: int, shape: str, fill: tuple[int, int, int]) -> None:
    """A shape in an 18-pixel box."""
    end, mid = 17, 8
    corners = {
        "triangle": [(0, end), (end, end), (mid, 0)],
        "diamond": [(mid, 0), (end, mid), (mid, end), (0, mid)],
        "star": [(8, 0), (11, 6), (17, 7), (12, 11), (14, 17), (8, 14), (3, 17), (5, 11), (0, 7), (6, 6)],
    }
    if shape in corners:
        canvas.polygon([(x + dx, y + dy) for dx, dy in corners[shape]], fill=fill)
    elif shape == "square":
        canvas.rectangle([x, y, x + end, y + end], fill=fill)
    elif shape == "circle":
        canvas.ellipse([x, y, x + end, y + end], fill=fill)
    elif shape == "ring":
        canvas.ellipse([x, y, x + end, y + end], outline=fill, width=4)
    elif shape == "bar":
        canvas.rectangle([x, y + 6, x + end, y + 11], fill=fill)
    elif shape == "cross":
        canvas.rectangle([x + 6, y, x + 11, y + end], fill=fill)
        canvas.rectangle([x, y + 6, x + end, y + 11], fill=fill)
