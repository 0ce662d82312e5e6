"""Render the pages with headless Chromium: `python -m benchmarks.tasks.render --split test --n 140`.

Many pages share one sheet, so that the browser starts twice per sheet: once for the picture, once for the boxes
that its layout gave to the elements.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import tempfile
from html import unescape
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from .base import SPLITS
from .draw import CELL
from .html import BACKGROUNDS, KINDS, STYLE, page
from .pages import folder

GRIDS = {
    "train": ((7, 9), (8, 12), (9, 14), (12, 16)),
    "validation": ((12, 17), (14, 20), (16, 22)),
    "test": ((12, 17), (14, 20), (16, 22)),
}
SHEET = 7000
SCRIPT = """
const found = [...document.querySelectorAll('.page')].map(page => {
  const origin = page.getBoundingClientRect();
  return [...page.querySelectorAll('[data-e]')].map(e => {
    const box = e.getBoundingClientRect();
    return [+e.dataset.e, box.left - origin.left, box.top - origin.top, box.width, box.height];
  });
});
document.body.innerHTML = '<pre>' + JSON.stringify(found) + '</pre>';
"""


def browser() -> str:
    """Path of Chromium.

    Raises:
        RuntimeError: none is installed.
    """
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise RuntimeError("no Chromium found; on Debian: apt-get install --no-install-recommends chromium fonts-dejavu")


def run(html: str, width: int, height: int, work: Path, script: bool) -> str:
    """One start of the browser: a screenshot at `work/sheet.png`, or the text of the DOM after the script."""
    source = work / "sheet.html"
    source.write_text(html + (f"<script>{SCRIPT}</script>" if script else ""))
    # A container has neither the namespaces for the browser's sandbox nor a large /dev/shm.
    common = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
              "--disable-lcd-text", "--font-render-hinting=none", f"--user-data-dir={work / 'profile'}",
              f"--window-size={width},{height}", "--force-device-scale-factor=1"]  # fmt: skip
    action = ["--dump-dom"] if script else [f"--screenshot={work / 'sheet.png'}"]
    done = subprocess.run([*common, *action, source.as_uri()], capture_output=True, text=True, timeout=180, check=True)
    return done.stdout


def sheet(split: str, numbers: list[int], rows: int, cols: int, target: Path) -> list[dict[str, Any]]:
    """Render pages of one grid; returns their index entries and writes a PNG each."""
    width, height = cols * CELL, rows * CELL
    across = max(1, SHEET // width)
    parts, pages = [], []
    for place, number in enumerate(numbers):
        rng = random.Random(f"page-{SPLITS[split]}-{number}")
        kind = rng.choice(list(KINDS))
        inner, elements = page(rng, kind, rows, cols)
        left, top = place % across * width, place // across * height
        style = f"left:{left}px;top:{top}px;width:{width}px;height:{height}px;background:{rng.choice(BACKGROUNDS)}"
        parts.append(f'<div class="page" style="{style}">{inner}</div>')
        pages.append((number, kind, elements, (left, top, left + width, top + height)))
    html = f"<!doctype html><meta charset=utf-8><style>{STYLE}</style><body>{''.join(parts)}"
    size = across * width, -(-len(numbers) // across) * height
    with tempfile.TemporaryDirectory(prefix="vllm-prune-pages-") as work:
        run(html, *size, Path(work), script=False)
        found = re.search(r"<pre>(.*?)</pre>", run(html, *size, Path(work), script=True), flags=re.DOTALL)
        if found is None:
            raise RuntimeError("Chromium gave no boxes; is its version newer than the script expects?")
        boxes = json.loads(unescape(found[1]))
        with Image.open(Path(work) / "sheet.png") as picture:
            whole = picture.convert("RGB")
    index = []
    for (number, kind, elements, area), placed in zip(pages, boxes, strict=True):
        entries = []
        if len(placed) != len(elements):
            raise RuntimeError(f"page {number} ({kind}) shows {len(placed)} of {len(elements)} elements")
        for which, x, y, w, h in placed:
            if (x % CELL, y % CELL, w, h) != (0, 0, CELL, CELL) or x >= width or y >= height:
                raise RuntimeError(f"page {number} ({kind}): element {which} at {x}, {y} is off the raster")
            one = elements[which]
            entries.append([int(y) // CELL, int(x) // CELL, one.mark, one.shape, one.colour, one.label])
        whole.crop(area).quantize(96, dither=Image.Dither.NONE).save(target / f"{number:04}.png", optimize=True)
        index.append({"number": number, "kind": kind, "grid": [rows, cols], "elements": entries})
    return index


def main(
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    n: Annotated[int, typer.Option(help="Pages.")] = 140,
) -> None:
    """Render and write."""
    target = folder(split)
    target.mkdir(parents=True, exist_ok=True)
    grids, index = GRIDS[split], []
    for place, (rows, cols) in enumerate(grids):
        numbers = list(range(place, n, len(grids)))
        room = max(1, SHEET // (cols * CELL)) * max(1, SHEET // (rows * CELL))
        for first in range(0, len(numbers), room):
            index += sheet(split, numbers[first : first + room], rows, cols, target)
    index.sort(key=lambda entry: entry["number"])
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in index)
    (target / "index.json").write_text(f"[\n{lines}\n]\n")
    typer.echo(f"{len(index)} pages in {target}")


if __name__ == "__main__":
    typer.run(main)
