"""Accessibility, phone width, colour schemes, and the keyboard alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import MILLISECONDS, WIDE, Site, Watched, watch
from .page_parts import SWEEP, Browser, Page, Previews, ask, column, example, expect, load_sweep, overlay

AXE = Path(__file__).parents[2] / "playground" / "node_modules" / "axe-core" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
PHONE = {"width": 360, "height": 780}
SMALLEST_TARGET = 24


def violations(page: Page) -> list[str]:
    """What axe finds, one line per element."""
    if not AXE.is_file():
        pytest.skip("needs axe-core from playground/package-lock.json: python scripts/build_playground.py --check")
    # Evaluated by the debugger, which the page's policy does not bind.
    page.evaluate(AXE.read_text())
    results: dict[str, Any] = page.evaluate(
        "tags => axe.run(document, {runOnly: tags, resultTypes: ['violations']})", RULES
    )
    return [f"{one['id']}: {node['html'][:160]}" for one in results["violations"] for node in one["nodes"]]


def filled(page: Page, name: str = "a web page") -> None:
    """Two settings, answers, the difference and a sweep."""
    example(page, name)
    expect(overlay(page)).to_be_visible()
    page.get_by_role("button", name="Add a setting").click()
    page.get_by_label("KV cache strategy of setting A").select_option("snapkv")
    ask(page)
    load_sweep(page, SWEEP)
    page.get_by_role("radio").first.check()


def refused(page: Page) -> None:
    """An error beside its field."""
    filled(page)
    page.get_by_label("Budget as a number, Visual of setting A").fill("7")
    expect(column(page).locator(".shot").get_by_role("alert")).to_be_visible()


def copying(page: Page) -> None:
    """The dialog with text to copy."""
    filled(page)
    page.get_by_role("button", name="Copy as… (setting A)").click()


def opened_options(page: Page) -> None:
    """A video, with the strategy's options open."""
    filled(page, "a video")
    page.get_by_text("about divprune").first.click()


def untouched(page: Page) -> None:
    """As it opens."""


@pytest.mark.parametrize(
    ("scheme", "size", "states"),
    [("light", WIDE, [untouched, opened_options, refused]), ("dark", PHONE, [copying, refused])],
    ids=["light desktop", "dark phone"],
)
def test_axe_finds_nothing(
    browser: Browser, site: Site, watched: Watched, scheme: Any, size: Any, states: list[Callable[[Page], None]]
) -> None:
    context = browser.new_context(viewport=size, color_scheme=scheme)
    context.set_default_timeout(MILLISECONDS)
    for state in states:
        page = context.new_page()
        watch(page, site, watched)
        page.goto(f"{site.url}/playground")
        expect(column(page)).to_be_visible()
        state(page)
        assert violations(page) == []
        page.close()
    context.close()
    assert watched.problems == []


def test_axe_would_find_something(page: Page) -> None:
    page.evaluate("() => document.body.append(document.createElement('button'))")
    assert any(line.startswith("button-name") for line in violations(page))


def test_on_a_phone_nothing_is_wider_than_the_screen_and_targets_can_be_hit(page: Page) -> None:
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    filled(page, "a video")
    assert page.evaluate("() => document.scrollingElement.scrollWidth") == PHONE["width"]
    boxes = page.locator("button, select, input:not([type=file]), summary, textarea")
    for place in range(boxes.count()):
        one = boxes.nth(place)
        # A control inside a label is hit by way of the label.
        box = one.evaluate(
            "e => { const r = (e.closest('label') ?? e).getBoundingClientRect(); return [r.x, r.width, r.height]; }"
        )
        assert min(box[1:]) >= SMALLEST_TARGET, one.evaluate("e => e.outerHTML")
        assert box[0] >= 0, one.evaluate("e => e.outerHTML")
    columns = [column(page, name).bounding_box() for name in ("reference", "A", "B")]
    tops = [box["y"] for box in columns if box]
    assert tops == sorted(tops)
    assert len(set(tops)) == 3


def test_on_a_desktop_columns_stand_side_by_side_and_their_rows_line_up(page: Page) -> None:
    filled(page)
    for part in (".shot", ".answer", ".numbers"):
        tops = {round(column(page, name).locator(part).bounding_box()["y"]) for name in ("reference", "A", "B")}  # type: ignore[index]
        assert len(tops) == 1, part


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colour_scheme_is_the_systems(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    red, *_ = (int(number) for number in ground.removeprefix("rgb(").removesuffix(")").split(","))
    assert red > 200 if scheme == "light" else red < 50


def test_with_the_keyboard_alone(page: Page, previews: Previews) -> None:
    """Tab to the example, take it, go to the slider, move it, ask, open and leave the dialog."""

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            label = page.evaluate(
                "() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText"
            )
            if label.strip().startswith(name):
                outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none"
                return
        raise AssertionError(f"Tab does not reach {name}")

    tab_to("a web page")
    page.keyboard.press("Enter")
    before = previews.flags()[0].sum()
    tab_to("Budget, Visual of setting A")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    expect(column(page).locator(".caption b")).to_have_text(str(int(352 * 0.4)))
    assert previews.flags()[0].sum() < before
    page.get_by_role("textbox", name="Question").focus()
    page.keyboard.press("Control+Enter")
    expect(column(page).locator(".caption")).to_contain_text("kept by the engine")
    page.get_by_role("button", name="(setting A alone)").focus()
    tab_to("Copy as…")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Copy as… (setting A)")).to_be_focused()
