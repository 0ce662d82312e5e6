"""What the tests do with the page: choose, read pixels, compare with bitmaps."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

try:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Response, Route, expect
except ImportError:
    pytest.skip("needs the package playwright, which make test installs", allow_module_level=True)

__all__ = ["Browser", "ConsoleMessage", "Page", "Response", "Route", "expect"]

EXAMPLES = Path(__file__).parents[2] / "playground" / "public" / "examples"
SWEEP = Path(__file__).parents[2] / "benchmarks" / "results" / "quality.json"
"""A result of the project's own, in the layout that a sweep writes."""
SETTING = "A"

READ_OVERLAY = """canvas => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0);
  const pixels = copy.getImageData(0, 0, canvas.width, canvas.height).data;
  let text = "";
  for (let i = 0; i < pixels.length; i += 8192) text += String.fromCharCode(...pixels.subarray(i, i + 8192));
  return [canvas.width, canvas.height, btoa(text)];
}"""


def picture_file(rows: int = 6, columns: int = 9, name: str = "screen.png", shade: int = 0) -> dict[str, Any]:
    """A PNG with a colour per cell, as a file for an input element."""
    cells = np.zeros((rows, columns, 3), dtype=np.uint8)
    cells[..., 0] = np.linspace(120, 250, columns).astype(np.uint8)
    cells[..., 1] = np.linspace(120, 250, rows).astype(np.uint8)[:, None]
    cells[..., 2] = 200 - shade
    data = io.BytesIO()
    Image.fromarray(cells.repeat(28, 0).repeat(28, 1)).save(data, "PNG")
    return {"name": name, "mimeType": "image/png", "buffer": data.getvalue()}


def flags_of(item: dict[str, Any]) -> np.ndarray:
    """The bitmap of an item, bool [steps, rows, columns]."""
    packed = np.frombuffer(base64.b64decode(item["kept"]), dtype=np.uint8)
    steps, rows, columns = item["grid"]
    return np.unpackbits(packed, count=steps * rows * columns).astype(bool).reshape(steps, rows, columns)


def pixels_of(canvas: Locator) -> np.ndarray:
    """RGBA of a canvas, uint8 [height, width, 4]."""
    width, height, data = canvas.evaluate(READ_OVERLAY)
    return np.frombuffer(base64.b64decode(data), dtype=np.uint8).reshape(height, width, 4)


def blocks_of(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Pixels per cell, [rows, columns, pixels of a cell, 4]."""
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    assert pixels.shape[:2] == (rows * height, columns * width)
    return pixels.reshape(rows, height, columns, width, 4).swapaxes(1, 2).reshape(rows, columns, -1, 4)


def drawn_flags(canvas: Locator, rows: int, columns: int) -> np.ndarray:
    """Cells that an overlay shows as kept, bool [rows, columns]: every pixel of those is clear, no other."""
    alpha = blocks_of(pixels_of(canvas), rows, columns)[..., 3]
    clear, dark = (alpha == 0).all(-1), (alpha > 150).all(-1)
    assert (clear ^ dark).all(), "a cell is partly drawn"
    return clear


def overlay(page: Page, letter: str = SETTING) -> Locator:
    """The overlay of a setting's column."""
    return column(page, letter).locator("canvas.overlay")


def column(page: Page, name: str = SETTING) -> Locator:
    """A column: a setting's letter, or `reference`."""
    return page.locator(f'[data-column="{name}"]')


def choose(page: Page, *files: dict[str, Any] | Path) -> None:
    """Choose files with the page's input element."""
    page.get_by_label("Pictures or videos").set_input_files([as_file(one) for one in files])  # type: ignore[misc]


def as_file(one: dict[str, Any] | Path) -> dict[str, Any]:
    """A file for an input element."""
    if isinstance(one, dict):
        return one
    kind = "video/mp4" if one.suffix == ".mp4" else "image/png"
    return {"name": one.name, "mimeType": kind, "buffer": one.read_bytes()}


def load_sweep(page: Page, file: dict[str, Any] | Path) -> None:
    """Load a result of `vllm-prune sweep`."""
    page.get_by_label("Result of a sweep").set_input_files(file)  # type: ignore[arg-type]


def example(page: Page, name: str) -> None:
    """Take a bundled example."""
    page.get_by_role("button", name=name).click()


class Previews:
    """Answers of the previews that a page has asked for."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._answers: list[Response] = []
        page.on("response", self._keep)

    def _keep(self, response: Response) -> None:
        if response.url.endswith("/v1/pruning/preview") and response.ok:
            self._answers.append(response)

    def settle(self) -> None:
        """Wait until the media have a preview and none is under way."""
        expect(overlay(self._page).first).to_be_visible()
        expect(self._page.locator(".shot[aria-busy=true]")).to_have_count(0)

    def last(self, strategy: str = "") -> dict[str, Any]:
        """The newest answer, or the newest of a strategy, once none is under way."""
        self.settle()
        bodies = (answer.json() for answer in reversed(self._answers))
        newest: dict[str, Any] = next(body for body in bodies if strategy in ("", body["visual"]["strategy"]))
        return newest

    def flags(self, number: int = 0, strategy: str = "") -> np.ndarray:
        """The newest bitmap of an item, bool [steps, rows, columns]."""
        return flags_of(self.last(strategy)["visual"]["items"][number])


def slide(page: Page, value: float, letter: str = SETTING, part: str = "Visual") -> None:
    """Move a budget's slider."""
    page.get_by_label(f"Budget, {part} of setting {letter}", exact=True).fill(f"{value}")


def ask(page: Page, question: str | None = None) -> None:
    """Type the question and press the button; returns when all answers are there."""
    if question is not None:
        page.get_by_role("textbox", name="Question").fill(question)
    button = page.get_by_role("button", name="Ask all")
    button.click()
    expect(button).to_be_enabled()


def usage_of(response: Response) -> dict[str, Any]:
    """The usage in the last chunk of a streamed answer."""
    lines = [line[6:] for line in response.text().splitlines() if line.startswith("data: {")]
    usage: dict[str, Any] = next(body["usage"] for body in map(json.loads, reversed(lines)) if body.get("usage"))
    return usage


def number(page: Page, name: str, which: str = SETTING) -> str:
    """A figure of a column, as it is shown."""
    line = column(page, which).locator(".numbers .line").filter(has=page.locator("dt", has_text=name))
    return " ".join(line.locator("dd").inner_text().split())
