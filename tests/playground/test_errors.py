"""Refusals say what to change, in the server's words; slow servers and large files are borne."""

from __future__ import annotations

import re
from pathlib import Path

from .conftest import Site, Watched
from .mock import Refused
from .page_parts import Page, Route, ask, choose, column, expect, overlay, picture_file

MEGABYTE = 1_000_000


def test_a_budget_out_of_range_names_its_field(page: Page) -> None:
    choose(page, picture_file())
    expect(overlay(page)).to_be_visible()
    field = page.get_by_label("Budget as a number, Visual of setting A")
    field.fill("1.5")
    alert = column(page).get_by_role("alert")
    expect(alert).to_contain_text("pruning.visual.keep")
    expect(alert.locator("code")).to_have_text("pruning.visual.keep")
    expect(field).to_have_attribute("aria-invalid", "true")
    field.fill("0.4")
    expect(alert).to_have_count(0)
    expect(field).to_have_attribute("aria-invalid", "false")


def test_a_refused_question_keeps_the_other_answers(page: Page, site: Site) -> None:
    controls = site.controls
    choose(page, picture_file())
    ask(page, "what is it ?")
    controls.refuse = Refused(503, "the server is at its limit of requests in flight; retry later", retry="7")
    page.get_by_role("button", name="(setting A alone)").click()
    alert = column(page).get_by_role("alert")
    expect(alert).to_contain_text("503 the server is at its limit")
    expect(alert).to_contain_text("Try again in 7 s")
    expect(column(page, "reference").locator(".answer .text")).to_have_text(controls.answer)


def test_an_error_inside_a_stream_is_shown(page: Page, site: Site) -> None:
    site.controls.break_after = 2
    choose(page, picture_file())
    ask(page, "what is it ?")
    expect(column(page).get_by_role("alert")).to_contain_text("the engine lost this request")


def test_a_server_that_is_away(page: Page, site: Site, watched: Watched) -> None:
    choose(page, picture_file())
    expect(overlay(page)).to_be_visible()
    page.route("**/v1/**", lambda route: route.abort())
    ask(page, "what is it ?")
    expect(column(page).get_by_role("alert")).to_contain_text(f"No answer from {site.url}")
    page.unroute("**/v1/**")
    ask(page)
    expect(column(page).locator(".answer .text")).not_to_be_empty()


def test_an_answer_that_is_no_json(page: Page) -> None:
    def gateway(route: Route) -> None:
        route.fulfill(status=502, content_type="text/html", body="<html>Bad Gateway</html>")

    page.route("**/v1/pruning/preview", gateway)
    choose(page, picture_file())
    expect(column(page).get_by_role("alert")).to_contain_text("HTTP 502")


SLOW_READER = """() => {
  FileReader.prototype.readAsDataURL = function (file) {
    setTimeout(() => this.onprogress?.({loaded: file.size / 2, total: file.size}), 50);
  };
  FileReader.prototype.abort = function () { this.onabort?.(); };
}"""


def test_reading_a_file_shows_its_progress_and_can_be_cancelled(page: Page) -> None:
    page.evaluate(SLOW_READER)
    choose(page, picture_file(name="slow.png"))
    reading = page.locator(".reading")
    expect(reading).to_contain_text("Reading slow.png")
    expect(reading.locator("progress")).to_have_js_property("value", 0.5)
    reading.get_by_role("button", name="Cancel").click()
    expect(reading).to_have_count(0)
    expect(page.locator(".files li")).to_have_count(0)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_file_of_another_kind(page: Page) -> None:
    choose(page, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    expect(page.get_by_role("alert")).to_have_text(
        "notes.txt is neither a picture nor a video. Use PNG, JPEG, WebP, MP4 or WebM."
    )
    choose(page, {"name": "nothing.png", "mimeType": "image/png", "buffer": b""})
    expect(page.get_by_role("alert")).to_contain_text("nothing.png is empty")


def test_a_video_that_the_browser_cannot_show_still_has_its_cells(page: Page, site: Site) -> None:
    def answer(route: Route) -> None:
        item = {
            "modality": "video",
            "grid": [2, 2, 2],
            "input_tokens": 8,
            "kept_tokens": 4,
            "strategy": "x",
            "kept": "pQ==",
        }
        visual = {"strategy": "x", "input_tokens": 8, "kept_tokens": 4, "items": [item]}
        route.fulfill(json={"visual": visual, "prompt_tokens": 9, "prompt_tokens_unpruned": 13})

    page.route("**/v1/pruning/preview", answer)
    choose(page, {"name": "odd.avi", "mimeType": "video/x-msvideo", "buffer": b"RIFF\0\0\0\0AVI LIST"})
    expect(column(page)).to_contain_text("This browser cannot show the video")
    expect(overlay(page)).to_have_attribute("aria-label", "Setting A keeps 2 of 4 visual tokens of step 1, 2 rows of 2")


def test_twenty_megabytes_on_a_slow_server(page: Page, site: Site, tmp_path: Path) -> None:
    controls = site.controls
    controls.preview_seconds = 0.8
    # What follows the end of a PNG is no part of the picture; decoders leave it alone.
    path = tmp_path / "large.png"
    path.write_bytes(picture_file()["buffer"] + bytes(20 * MEGABYTE))
    page.get_by_role("textbox", name="Question").fill("what is it ?")
    page.get_by_label("Pictures or videos").set_input_files(path)
    expect(page.locator(".files small")).to_have_text("20.0 MB")
    expect(column(page).locator(".caption")).to_contain_text("asking for a preview")
    expect(overlay(page)).to_be_visible(timeout=20_000)
    controls.first_seconds = 60
    page.get_by_role("button", name="Ask all").click()
    waiting = page.locator(".waiting")
    expect(waiting).to_contain_text("No budget: waiting for the first token")
    expect(waiting.locator("small")).to_have_text(re.compile(r"[1-9]\.\d s"))
    page.get_by_role("button", name="Cancel").click()
    expect(column(page, "reference")).to_contain_text("cancelled")
    expect(column(page)).to_contain_text("cancelled")
    expect(page.get_by_role("button", name="Ask all")).to_be_enabled()
    assert len(controls.chats) == 1
