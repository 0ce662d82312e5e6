"""What the page draws is what the server's bitmaps say, pixel for pixel."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from .conftest import Site
from .page_parts import (
    EXAMPLES,
    Page,
    Previews,
    blocks_of,
    choose,
    column,
    drawn_flags,
    example,
    expect,
    flags_of,
    overlay,
    picture_file,
    pixels_of,
    slide,
)


def assert_drawn(page: Page, flags: np.ndarray) -> None:
    """The overlay of setting A shows these flags, bool [rows, columns]."""
    assert (drawn_flags(overlay(page), *flags.shape) == flags).all()


def test_an_uploaded_picture_shows_its_bitmap_and_a_wrong_one_is_noticed(page: Page, previews: Previews) -> None:
    choose(page, picture_file())
    expect(overlay(page)).to_be_visible()
    (flags,) = previews.flags()
    assert 0 < flags.sum() < flags.size
    assert_drawn(page, flags)
    # The comparison itself: one other bit is another picture.
    wrong = flags.copy()
    wrong[2, 3] ^= True
    with pytest.raises(AssertionError):
        assert_drawn(page, wrong)
    expect(column(page).locator(".caption")).to_contain_text(f"{flags.sum()} of {flags.size} tokens")


def test_dropped_cells_are_dark_on_the_screen_and_kept_ones_unchanged(page: Page, previews: Previews) -> None:
    choose(page, picture_file())
    expect(overlay(page)).to_be_visible()
    (flags,) = previews.flags()
    shot = column(page).locator(".picture")
    covered = Image.open(io.BytesIO(shot.screenshot())).convert("RGB")
    page.get_by_label("darken dropped tokens").uncheck()
    expect(overlay(page)).to_be_hidden()
    plain = Image.open(io.BytesIO(shot.screenshot())).convert("RGB")
    rows, columns = flags.shape
    for row in range(rows):
        for place in range(columns):
            at = int((place + 0.5) * plain.width / columns), int((row + 0.5) * plain.height / rows)
            before, after = np.sum(plain.getpixel(at)), np.sum(covered.getpixel(at))
            assert (after == before) if flags[row, place] else (after < 0.5 * before)


def test_the_slider_changes_the_overlay_and_the_predicted_cost(page: Page, previews: Previews) -> None:
    choose(page, picture_file())
    first = previews.flags()[0].sum()
    slide(page, 0.2)
    body = previews.last()
    (flags,) = previews.flags()
    assert flags.sum() < first
    expect(column(page).locator(".caption b")).to_have_text(str(flags.sum()))
    assert_drawn(page, flags)
    line = column(page).locator(".numbers .line").first
    expect(line).to_contain_text("predicted")
    expect(line.locator("dd")).to_have_text(f"{body['prompt_tokens']} of {body['prompt_tokens_unpruned']}")


def test_a_moving_slider_asks_when_it_rests_and_gives_up_what_is_out_of_date(
    page: Page, site: Site, previews: Previews
) -> None:
    controls = site.controls
    choose(page, picture_file())
    previews.settle()
    controls.previews.clear()
    for percent in range(30, 60):
        slide(page, percent / 100)
    expect(column(page).locator(".caption b")).to_have_text(str(int(54 * 0.59)))
    assert controls.previews[-1]["visual"]["keep"] == 0.59
    assert len(controls.previews) < 8
    controls.preview_seconds = 20
    slide(page, 0.7)
    expect(column(page).locator(".caption")).to_contain_text("updating…")
    # What the page takes back before it has reached the server is no request there.
    until(page, lambda: controls.previews[-1]["visual"]["keep"] == 0.7)
    controls.preview_seconds = 0
    slide(page, 0.8)
    expect(column(page).locator(".caption b")).to_have_text(str(int(54 * 0.8)))
    until(page, lambda: controls.left == 1)


def until(page: Page, holds: Callable[[], bool]) -> None:
    """Let the page go on until something holds at the server."""
    for _ in range(200):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it has not come to hold within ten seconds")


def test_several_pictures_have_a_bitmap_each(page: Page, previews: Previews) -> None:
    choose(page, picture_file(4, 7, "one.png"), picture_file(8, 5, "two.png", shade=60))
    expect(page.locator(".files li")).to_have_count(2)
    expect(overlay(page)).to_be_visible()
    assert_drawn(page, previews.flags(0)[0])
    page.get_by_role("button", name="2 two.png").click()
    (flags,) = previews.flags(1)
    label = f"Setting A keeps {flags.sum()} of 40 visual tokens, 8 rows of 5"
    expect(overlay(page)).to_have_attribute("aria-label", label)
    assert_drawn(page, flags)
    page.get_by_role("button", name="Remove one.png").click()
    expect(page.locator(".files li")).to_have_count(1)
    assert_drawn(page, previews.flags(0)[0])


def test_a_video_is_shown_step_by_step(page: Page, previews: Previews) -> None:
    choose(page, EXAMPLES / "clip.mp4")
    expect(overlay(page)).to_be_visible()
    flags = previews.flags()
    assert flags.shape == (5, 7, 9)
    scrubber = page.get_by_label("Temporal step of the video")
    frame = column(page).locator("canvas.frame")
    shown = []
    for step, wanted in enumerate(flags):
        scrubber.fill(str(step))
        label = f"Setting A keeps {wanted.sum()} of 63 visual tokens of step {step + 1}, 7 rows of 9"
        expect(overlay(page)).to_have_attribute("aria-label", label)
        expect(frame).to_have_attribute("data-step", str(step))
        assert_drawn(page, wanted)
        shown.append(pixels_of(frame))
    assert shown[0].shape == (7 * 28, 9 * 28, 4)
    # The star appears in the third step and the triangle in the fourth: what is shown is the step's own frame.
    same = [bool((np.abs(a.astype(int) - b).max(-1) < 60).all()) for a, b in pairwise(shown)]
    assert same == [True, False, False, True]
    scrubber.press("ArrowLeft")
    expect(page.locator(".strip .line span")).to_contain_text("Step 4 of 5")


def test_a_video_before_a_picture_has_its_own_bitmap(page: Page, previews: Previews) -> None:
    choose(page, EXAMPLES / "clip.mp4", picture_file(4, 7))
    expect(page.locator(".files li")).to_have_count(2)
    items = {item["modality"]: flags_of(item) for item in previews.last()["visual"]["items"]}
    expect(overlay(page)).to_have_attribute("aria-label", re.compile("of 63 visual tokens of step 1, 7 rows of 9$"))
    assert_drawn(page, items["video"][0])
    page.get_by_role("button", name="2 screen.png").click()
    expect(overlay(page)).to_have_attribute("aria-label", re.compile("of 28 visual tokens, 4 rows of 7$"))
    assert_drawn(page, items["image"][0])


def test_the_difference_shows_what_one_setting_keeps_and_the_other_does_not(page: Page, previews: Previews) -> None:
    example(page, "a web page")
    page.get_by_role("button", name="Add a setting").click()
    page.get_by_label("Visual strategy of setting B").select_option("uniform")
    (second,) = previews.flags(strategy="uniform")
    rows, columns = second.shape
    expect(column(page, "B").locator(".caption b")).to_have_text(str(second.sum()))
    first = drawn_flags(overlay(page, "A"), rows, columns)
    only_first, only_second, both = first & ~second, second & ~first, first & second
    assert only_first.any()
    assert only_second.any()
    neither = ~(first | second)
    counts = [str(one.sum()) for one in (only_first, only_second, both, neither)]
    expect(page.locator(".difference .legend li b")).to_have_text(counts)
    cells = blocks_of(pixels_of(page.locator("canvas[data-difference]")), rows, columns)
    clear = (cells[..., 3] == 0).all(-1)
    mean = cells[..., :3].astype(int).mean(-2)
    blue, orange = mean[..., 2] > mean[..., 0] + 40, mean[..., 0] > mean[..., 2] + 40
    assert (clear == both).all()
    assert (blue == only_first).all()
    assert (orange == only_second).all()
    assert (~(clear | blue | orange) == neither).all()


def test_the_enlarged_picture_has_the_same_overlay(page: Page, previews: Previews) -> None:
    choose(page, picture_file())
    expect(overlay(page)).to_be_visible()
    page.get_by_role("button", name="Enlarge the picture of setting A").click()
    dialog = page.get_by_role("dialog")
    (flags,) = previews.flags()
    assert (drawn_flags(dialog.locator("canvas.overlay"), *flags.shape) == flags).all()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_files_are_dropped_or_pasted_anywhere(page: Page, way: str) -> None:
    transfer = page.evaluate_handle(
        """bytes => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
          return transfer;
        }""",
        list(picture_file(5, 5)["buffer"]),
    )
    if way == "drop":
        page.locator("main").dispatch_event("drop", {"dataTransfer": transfer})
    else:
        page.evaluate(
            "data => document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}))",
            transfer,
        )
    expect(page.locator(".files li .name")).to_have_text("dropped.png")
    expect(overlay(page)).to_be_visible()


def test_an_example_can_be_dragged_onto_the_page(page: Page, previews: Previews) -> None:
    page.get_by_role("button", name="three screenshots").drag_to(page.locator("main"))
    expect(page.locator(".files li")).to_have_count(3)
    expect(overlay(page)).to_be_visible()
    expect(page.get_by_role("textbox", name="Question")).to_have_value("picture 1 : what colour is the diamond ?")
    expect(page.locator(".drop.over")).to_have_count(0)
    # A drag is aimed at where things are when it begins, and a preview that arrives moves them.
    previews.settle()
    page.get_by_role("button", name="a web page").drag_to(page.locator(".drop"))
    expect(page.locator(".files li .name")).to_have_text("page.png")


def test_the_page_says_how_to_begin_until_there_is_a_picture(page: Page, previews: Previews) -> None:
    start = page.get_by_role("region", name="Choose a budget by looking")
    start.get_by_role("button", name="Take the first example").click()
    expect(start).to_have_count(0)
    assert_drawn(page, previews.flags()[0])


def test_what_a_slider_means_is_written_below_it(page: Page, site: Site, previews: Previews) -> None:
    meaning = column(page).locator(".meaning")
    expect(meaning).to_have_text("keeps 50% of the visual tokens")
    choose(page, picture_file())
    expect(meaning).to_have_text("keeps 27 of 54 visual tokens")
    previews.settle()
    if site.mock is not None:
        site.controls.preview_seconds = 20
    with page.expect_request("**/v1/pruning/preview"):
        slide(page, 0.3)
    if site.mock is not None:
        # The server has not counted yet: the figures of another budget would be wrong.
        expect(meaning).to_have_text("keeps 30% of the visual tokens")
        site.controls.preview_seconds = 0
    page.get_by_label("Unit of the budget, Visual of setting A").select_option("max_tokens")
    slide(page, 20)
    expect(meaning).to_have_text("keeps 20 of 54 visual tokens")
