"""HTML pages of many kinds on a raster of 28 pixels: forms, tables, menus, dialogs, toolbars and maps of icons."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from html import escape

from .draw import CELL, COLOURS, Element
from .screens import place

TEXTS = (
    "Name", "Street", "Town", "Total", "Date", "Notes", "Phone", "Owner", "State", "Price", "Order", "Group", "Files",
    "Inbox", "Today", "Later", "Draft", "Sent", "Title", "Level", "Topic", "Route", "Input", "Users",
)  # fmt: skip
BACKGROUNDS = ("#ffffff", "#f5f5f5", "#e8ecf2", "#faf4e6", "#e1e8e1", "#eef2ff")
STYLE = f"""
* {{ box-sizing: border-box; margin: 0; padding: 0; font: 11px/{CELL}px "DejaVu Sans Mono", monospace; }}
body {{ background: #ffffff; }}
.page {{ position: absolute; overflow: hidden; color: #555; }}
.page > div, .row {{ display: flex; height: {CELL}px; }}
.e {{ position: relative; flex: none; width: {CELL}px; height: {CELL}px; overflow: hidden; }}
.e b {{ position: absolute; left: 19px; top: 15px; font: 10px/11px "DejaVu Sans Mono", monospace; color: #000; }}
.e svg {{ position: absolute; left: 2px; top: 2px; }}
.b {{ background: #cdd2da; border: 1px solid #5a5a5a; }}
.b i {{ position: absolute; left: 1px; top: 0; font: 9.5px/12px "DejaVu Sans Mono", monospace; color: #000; }}
.b b {{ left: 17px; top: 13px; }}
.t {{ flex: none; height: {CELL}px; overflow: hidden; white-space: nowrap; padding-left: 3px; font-size: 12px; }}
.in {{ background: #fff; border: 1px solid #999; color: #888; }}
.head {{ background: #d4dae6; color: #333; }}
.line {{ border-bottom: 1px solid #ccc; }}
"""
SVG = {
    "square": '<rect width="18" height="18"/>',
    "circle": '<circle cx="9" cy="9" r="9"/>',
    "ring": '<circle cx="9" cy="9" r="7" fill="none" stroke="{c}" stroke-width="4"/>',
    "bar": '<rect y="6" width="18" height="6"/>',
    "cross": '<path d="M6 0h6v6h6v6h-6v6h-6v-6h-6v-6h6z"/>',
    "triangle": '<path d="M0 18L18 18L9 0z"/>',
    "diamond": '<path d="M9 0L18 9L9 18L0 9z"/>',
    "star": '<path d="M9 0L12 6L18 7L13 11L15 18L9 15L3 18L5 11L0 7L6 6z"/>',
}
Lines = list[list[str]]


def page(rng: random.Random, kind: str, rows: int, cols: int) -> tuple[str, list[Element]]:
    """Inner HTML of one page, and its elements in the order of their `data-e`; places come from the DOM."""
    elements = place(rng, rows, cols)
    rng.shuffle(elements)
    pieces = iter([_element(number, one) for number, one in enumerate(elements)])
    # Two lines stay free for what the layout has no room for.
    lines = KINDS[kind](rng, rows - 1, cols, pieces)
    left = list(pieces)
    last = [left[first : first + cols] for first in range(0, len(left), cols)]
    lines = [*lines[: rows - len(last)], *last]
    return "".join(f"<div>{''.join(line)}</div>" for line in lines), elements


def _element(number: int, one: Element) -> str:
    if one.label:
        return f'<button class="e b" data-e="{number}"><i>{one.label}</i><b>{one.mark}</b></button>'
    colour = "rgb({},{},{})".format(*COLOURS[one.colour])
    shape = SVG[one.shape].format(c=colour)
    svg = f'<svg width="18" height="18" fill="{colour}">{shape}</svg>'
    return f'<span class="e" data-e="{number}">{svg}<b>{one.mark}</b></span>'


def _text(rng: random.Random, cells: int, style: str = "", length: int = 1) -> str:
    words = " ".join(rng.choice(TEXTS) for _ in range(length))
    return f'<span class="t {style}" style="width:{cells * CELL}px">{escape(words)}</span>'


def _next(rng: random.Random, pieces: Iterator[str], chance: float) -> list[str]:
    found = next(pieces, "") if rng.random() < chance else ""
    return [found] if found else []


def _form(rng: random.Random, rows: int, cols: int, pieces: Iterator[str]) -> Lines:
    lines = [[_text(rng, cols, "head", 2)]]
    wide = rng.randint(2, 3)
    for _ in range(rows - 2):
        entry = _text(rng, rng.randint(3, max(3, cols - wide - 3)), "in")
        lines.append([_text(rng, wide), entry, *_next(rng, pieces, 0.8)] if rng.random() < 0.75 else [])
    return lines


def _table(rng: random.Random, rows: int, cols: int, pieces: Iterator[str]) -> Lines:
    wide, count = 2, (cols - 2) // 3
    lines = [[_text(rng, wide + 1, "head") for _ in range(count)]]
    for _ in range(rows - 2):
        line = []
        for _ in range(count):
            icon = _next(rng, pieces, 0.25)
            line += [_text(rng, wide if icon else wide + 1, "line"), *icon]
        lines.append(line)
    return lines


def _menu(rng: random.Random, rows: int, cols: int, pieces: Iterator[str]) -> Lines:
    bar: list[str] = []
    for _ in range(max(1, cols // 4)):
        bar += [*_next(rng, pieces, 0.6), _text(rng, 2, "head")]
    lines = [bar, []]
    indent = rng.randint(0, cols // 3)
    for _ in range(rows - 3):
        item = [*_next(rng, pieces, 0.7), _text(rng, rng.randint(3, 5), "in")]
        lines.append([_text(rng, indent, "", 3), *item] if indent and rng.random() < 0.7 else item)
    return lines


def _dialog(rng: random.Random, rows: int, cols: int, pieces: Iterator[str]) -> Lines:
    inner = max(5, cols - 4)
    lines = [[_text(rng, cols, "", 5)] for _ in range(rng.randint(1, max(1, rows // 4)))]
    lines.append([_text(rng, 1), _text(rng, inner, "head", 2)])
    for _ in range(rows - 2 - len(lines)):
        line, room = [_text(rng, 1)], inner
        while room > 2:
            width = min(room, rng.randint(2, 4))
            line.append(_text(rng, width, "in"))
            room -= width
            icon = _next(rng, pieces, 0.3) if room else []
            line += icon
            room -= len(icon)
        lines.append(line)
    return lines


def _toolbar(rng: random.Random, rows: int, cols: int, pieces: Iterator[str]) -> Lines:
    bar: list[str] = []
    while len(bar) < cols - 1 and (piece := _next(rng, pieces, 0.85)):
        bar += piece
    lines = [bar, [_text(rng, cols, "head", 2)]]
    for _ in range(rows - 3):
        width = rng.randint(2, cols - 2)
        lines.append([_text(rng, width, "", 6), *_next(rng, pieces, 0.3)] if rng.random() < 0.7 else [])
    return lines


def _map(rng: random.Random, rows: int, cols: int, pieces: Iterator[str]) -> Lines:
    chance = min(0.5, 9 / (rows * cols))
    lines = []
    for _ in range(rows - 1):
        line = []
        for _ in range(cols):
            line += _next(rng, pieces, chance) or [_text(rng, 1, rng.choice(["", "", "", "", "line", "head"]), 0)]
        lines.append(line)
    return lines


KINDS: dict[str, Callable[[random.Random, int, int, Iterator[str]], Lines]] = {
    "form": _form,
    "table": _table,
    "menu": _menu,
    "dialog": _dialog,
    "toolbar": _toolbar,
    "map": _map,
}
