#!/usr/bin/env python3
"""Make the pictures of the playground for README and docs from a running server.

    make serve &
    python scripts/playground_screenshots.py http://127.0.0.1:8000 --out docs/pictures

It needs the extra `test` and Chromium (`scripts/get_chromium.py`). What is shown is what that server answers. A picture
has few colours, so that it stays below `MOST_BYTES`.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.tasks.render import browser as chromium  # noqa: E402

SWEEP = ROOT / "benchmarks" / "results" / "quality.json"
DESKTOP = {"width": 1280, "height": 1000}
PHONE = {"width": 390, "height": 844}
SCALE = 1.5
COLOURS = 256
MOST_BYTES = 150_000
ANSWER_MILLISECONDS = 180_000


def example(page: Page, name: str) -> None:
    """Take a bundled example and wait for its overlay."""
    page.get_by_role("button", name=name).click()
    expect(page.locator('[data-column="A"] canvas.overlay')).to_be_visible()


def settings(page: Page, *budgets: tuple[str, float]) -> None:
    """Set up a column per visual strategy and ratio."""
    for place, (strategy, keep) in enumerate(budgets):
        letter = "ABCD"[place]
        if place:
            page.get_by_role("button", name="Add a setting").click()
        page.get_by_label(f"Visual strategy of setting {letter}").select_option(strategy)
        page.get_by_label(f"Budget as a number, Visual of setting {letter}").fill(f"{keep}")


def ask(page: Page) -> None:
    """Ask every column and wait for the answers."""
    button = page.get_by_role("button", name="Ask all")
    button.click()
    expect(button).to_be_enabled(timeout=ANSWER_MILLISECONDS)
    expect(page.locator(".shot[aria-busy=true]")).to_have_count(0)
    page.mouse.move(0, 0)


def compared(page: Page) -> None:
    """A page under two strategies, with answers."""
    example(page, "a web page")
    settings(page, ("divprune", 0.1), ("uniform", 0.1))
    ask(page)


def video(page: Page) -> None:
    """A video under a KV budget as well, scrubbed to its middle."""
    example(page, "a video")
    settings(page, ("divprune", 0.5), ("uniform", 0.25))
    page.get_by_label("KV cache strategy of setting A").select_option("snapkv")
    ask(page)
    page.get_by_label("Temporal step of the video").fill("2")


def sweep(page: Page) -> None:
    """The project's own measurement."""
    page.get_by_label("Result of a sweep").set_input_files(SWEEP)
    page.get_by_role("radio", name="divprune 0.5").check()


def phone(page: Page) -> None:
    """The first setting on a small screen."""
    compared(page)
    page.locator('[data-column="A"]').evaluate("column => column.scrollIntoView()")


SHOTS: dict[str, tuple[dict[str, int], str, Callable[[Page], None], str | None]] = {
    "playground": (DESKTOP, "light", compared, None),
    "playground-video": (DESKTOP, "dark", video, None),
    "playground-difference": (DESKTOP, "light", compared, ".difference"),
    "playground-sweep": (DESKTOP, "light", sweep, ".sweep"),
    "playground-phone": (PHONE, "light", phone, None),
}


def shoot(browser: Browser, url: str, name: str, out: Path) -> None:
    """Bring the page into a state and save it as a PNG."""
    size, scheme, prepare, part = SHOTS[name]
    view: Any = {"viewport": size, "color_scheme": scheme, "device_scale_factor": SCALE}
    context = browser.new_context(**view)
    page = context.new_page()
    page.goto(f"{url}/playground")
    expect(page.get_by_text("connected", exact=True)).to_be_visible()
    prepare(page)
    page.wait_for_timeout(400)
    path = out / f"{name}.png"
    target = page.locator(part) if part else page
    write(target.screenshot(), path)
    context.close()


def write(png: bytes, path: Path) -> None:
    """Write a picture with fewer colours. Raises `SystemExit` for one that is still too large."""
    with Image.open(io.BytesIO(png)) as image:
        few = image.convert("RGB").quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(path, optimize=True)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{path} has {size} bytes, more than {MOST_BYTES}; show less of the page")
    print(f"{path}: {size // 1000} kB")


def main(argv: list[str] | None = None) -> None:
    """Take all shots, or those named."""
    parser = argparse.ArgumentParser(description="Make the pictures of the playground from a running server.")
    parser.add_argument("url", help="of the server, without /playground")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures", help="folder (default: docs/pictures)")
    parser.add_argument("--only", nargs="*", choices=sorted(SHOTS), default=sorted(SHOTS), help="some of them")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium(), args=flags)
        for name in options.only:
            shoot(browser, options.url.rstrip("/"), name, options.out)
        browser.close()


if __name__ == "__main__":
    main()
