"""The page in Chromium on a real server: overlay, bitmap and engine agree, and a newcomer's way works as described.

The other tests of the page, in tests/playground, use a server of known answers.
"""

from __future__ import annotations

import io
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.servers import Server

from ..playground.conftest import MILLISECONDS, WIDE, Site, Watched, browser, page, previews, watch, watched
from ..playground.page_parts import (
    EXAMPLES,
    Browser,
    Page,
    Previews,
    Response,
    ask,
    choose,
    column,
    drawn_flags,
    example,
    expect,
    flags_of,
    number,
    overlay,
    slide,
    usage_of,
)
from ..playground.test_look import PHONE, filled, violations
from .media_files import image_part, user

__all__ = ["browser", "page", "previews", "watched"]

MEGABYTES = 20
STRATEGIES = {
    "gui_dedup": "pixels, in the front end",
    "divprune": "features behind the tower",
    "stts": "a trained scorer in the tower",
    "uniform": "cut in the tower",
}
TOWER: dict[str, Any] = {"where": "tower", "after": 0}


@pytest.fixture
def site(server: Server) -> Site:
    """The server that the other tests over HTTP share."""
    return Site(server.url, None)


def answers_of(page: Page) -> list[Response]:
    """Streamed answers, in their order; filled while the page asks."""
    answers: list[Response] = []
    page.on("response", lambda one: answers.append(one) if one.url.endswith("/chat/completions") else None)
    return answers


def answer_text(page: Page, name: str) -> str:
    """What a column answered."""
    return column(page, name).locator(".answer .text").inner_text()


def test_a_newcomers_way_from_the_example_to_another_answer(page: Page, previews: Previews) -> None:
    """Open the page, drag the bundled example in, move the slider, see the overlay and the answer change."""
    page.get_by_role("button", name="a web page").drag_to(page.locator("main"))
    (half,) = previews.flags()
    assert half.shape == (16, 22)
    assert half.sum() == 176
    assert (drawn_flags(overlay(page), *half.shape) == half).all()
    ask(page)
    assert answer_text(page, "reference") == answer_text(page, "A") == "J"
    expect(page.get_by_text("the right answer is “J”")).to_be_visible()
    slide(page, 0.01)
    (few,) = previews.flags()
    assert few.sum() == 3
    assert (drawn_flags(overlay(page), *few.shape) == few).all()
    expect(column(page).locator(".meaning")).to_have_text("keeps 3 of 352 visual tokens")
    ask(page)
    assert answer_text(page, "reference") == "J"
    assert answer_text(page, "A") not in ("J", "")
    assert (number(page, "Visual tokens"), number(page, "Prompt tokens")) == ("3 of 352", "17 of 366")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_overlay_preview_and_engine_agree_for_a_picture_and_a_video(
    page: Page, previews: Previews, strategy: str
) -> None:
    answers = answers_of(page)
    choose(page, EXAMPLES / "page.png", EXAMPLES / "clip.mp4")
    expect(page.locator(".files li")).to_have_count(2)
    page.get_by_label("Visual strategy of setting A").select_option(strategy)
    if strategy == "uniform":
        page.get_by_text("about uniform").click()
        page.get_by_label("where, Visual of setting A").select_option("tower")
        page.get_by_label("after, Visual of setting A").fill("1")
    slide(page, 0.3)
    seen = previews.last(strategy)["visual"]["items"]
    drawn = [shown(page, number, item) for number, item in enumerate(seen)]
    ask(page, "which shape appeared first ?")
    expect(column(page).locator(".caption")).to_contain_text("kept by the engine")
    usage = usage_of(answers[-1])
    kept = usage["pruning"]["visual"]["items"]
    assert [item["grid"] for item in kept] == [[1, 16, 22], [5, 7, 9]]
    assert kept == seen
    for place, item in enumerate(kept):
        assert item["strategy"] == strategy
        assert flags_of(item).sum() == item["kept_tokens"] == int(0.3 * item["input_tokens"])
        assert (drawn[place] == flags_of(item)).all()
        assert (shown(page, place, item) == flags_of(item)).all()
    assert number(page, "Prompt tokens").split()[0] == str(usage["prompt_tokens"])


def shown(page: Page, number: int, item: dict[str, Any]) -> np.ndarray:
    """What the overlay of setting A shows of a medium, bool [steps, rows, columns]."""
    page.get_by_role("group", name="Shown file").get_by_role("button").nth(number).click()
    steps, rows, columns = item["grid"]
    drawn = []
    for step in range(steps):
        if steps > 1:
            page.get_by_label("Temporal step of the video").fill(str(step))
        place = f" of step {step + 1}" if steps > 1 else ""
        label = re.compile(f"of {rows * columns} visual tokens{place}, {rows} rows of {columns}$")
        expect(overlay(page)).to_have_attribute("aria-label", label)
        drawn.append(drawn_flags(overlay(page), rows, columns))
    return np.stack(drawn)


def logprobs(server: Server, picture: Image.Image) -> list[float]:
    """Of the likeliest first tokens of the answer, under a cut before the tower's first block."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    visual = {"strategy": "uniform", "keep": 0.5, "options": TOWER}
    body = {
        "model": server.model_name, "messages": user([image_part(data.getvalue())], "click the green star"),
        "pruning": {"visual": visual}, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 5,
    }  # fmt: skip
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return [one["logprob"] for one in answer.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]]


def test_the_model_reads_what_the_overlay_leaves_clear_and_nothing_that_it_darkens(
    page: Page, server: Server, previews: Previews
) -> None:
    """Noise in all dark tokens changes nothing in the answer's probabilities; in one clear token it does."""
    choose(page, EXAMPLES / "page.png")
    page.get_by_label("Visual strategy of setting A").select_option("uniform")
    page.get_by_text("about uniform").click()
    page.get_by_label("where, Visual of setting A").select_option("tower")
    page.get_by_label("after, Visual of setting A").fill("0")
    previews.settle()
    expect(column(page).locator(".meaning")).to_have_text("keeps 176 of 352 visual tokens")
    clear = drawn_flags(overlay(page), 16, 22)
    with Image.open(EXAMPLES / "page.png") as file:
        pixels = np.array(file.convert("RGB"))
    size = pixels.shape[0] // 16
    assert pixels.shape == (16 * size, 22 * size, 3)
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)

    def noisy(tokens: np.ndarray) -> Image.Image:
        mask = tokens.repeat(size, 0).repeat(size, 1)[..., None]
        return Image.fromarray(np.where(mask, noise, pixels))

    plain = logprobs(server, noisy(np.zeros_like(clear)))
    assert logprobs(server, noisy(~clear)) == pytest.approx(plain, abs=1e-5)
    one = np.zeros_like(clear)
    one[tuple(np.argwhere(clear)[0])] = True
    assert logprobs(server, noisy(one)) != pytest.approx(plain, abs=1e-3)


def test_a_question_finds_nothing_in_the_servers_caches(page: Page, server: Server, previews: Previews) -> None:
    """Not even what its own preview has left there, so that times of settings can be compared."""
    counters = ("vllm:prefix_cache_hits_total", "vllm:mm_cache_hits_total")
    example(page, "a web page")
    previews.settle()
    before = [server.metric(name) for name in counters]
    ask(page)
    ask(page)
    assert [server.metric(name) for name in counters] == before
    assert number(page, "First token").endswith(" ms")


def untouched(page: Page) -> None:
    """As it opens."""


def refused(page: Page) -> None:
    """A video with answers, a difference and a sweep, and an error beside its field."""
    filled(page, "a video")
    page.get_by_label("Budget as a number, Visual of setting A").fill("7")
    alert = column(page).locator(".shot").get_by_role("alert")
    expect(alert).to_contain_text("pruning.visual.keep")


@pytest.mark.parametrize(
    ("scheme", "size", "state"),
    [("light", WIDE, untouched), ("light", WIDE, filled), ("dark", PHONE, refused)],
    ids=["opened", "filled", "dark phone"],
)
def test_axe_and_the_policy_find_nothing(
    browser: Browser,
    site: Site,
    watched: Watched,
    scheme: Any,
    size: Any,
    state: Callable[[Page], None],
) -> None:
    context = browser.new_context(viewport=size, color_scheme=scheme)
    context.set_default_timeout(MILLISECONDS)
    opened = context.new_page()
    watch(opened, site, watched)
    opened.goto(f"{site.url}/playground")
    expect(column(opened)).to_be_visible()
    state(opened)
    assert violations(opened) == []
    assert opened.evaluate("() => document.scrollingElement.scrollWidth") == size["width"]
    ground = opened.evaluate("() => getComputedStyle(document.body).backgroundColor")
    dark = int(re.findall(r"\d+", ground)[0]) < 50
    assert dark == (scheme == "dark")
    context.close()
    assert watched.problems == []
    assert watched.origins == {site.url}


def test_a_file_of_twenty_megabytes(page: Page, previews: Previews, tmp_path: Path) -> None:
    # What follows the end of a PNG is no part of the picture; decoders leave it alone.
    path = tmp_path / "large.png"
    path.write_bytes((EXAMPLES / "page.png").read_bytes() + bytes(MEGABYTES * 1_000_000))
    example(page, "a web page")
    (flags,) = previews.flags()
    page.get_by_role("button", name="Remove page.png").click()
    page.get_by_label("Pictures or videos").set_input_files(path)
    expect(page.locator(".files small")).to_have_text("20.0 MB")
    previews.settle()
    assert (drawn_flags(overlay(page), 16, 22) == flags).all()
    ask(page)
    assert answer_text(page, "A") == "J"


@contextmanager
def standing_still(server: Server) -> Iterator[None]:
    """The server and its engine get no turn."""
    assert server.process is not None
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)


def test_a_server_that_is_slow(page: Page, server: Server, previews: Previews) -> None:
    example(page, "a web page")
    previews.settle()
    waiting = page.locator(".waiting")
    with standing_still(server):
        slide(page, 0.2)
        expect(column(page).locator(".caption")).to_contain_text("updating…")
        page.get_by_role("button", name="Ask all").click()
        expect(waiting).to_contain_text("No budget: waiting for the first token")
        expect(waiting.locator("small")).to_have_text(re.compile(r"[1-9]\.\d s"))
        page.get_by_role("button", name="Cancel").click()
        expect(column(page, "reference")).to_contain_text("cancelled")
        expect(column(page)).to_contain_text("cancelled")
    # What it was asked for is there as soon as it goes on.
    expect(column(page).locator(".meaning")).to_have_text("keeps 70 of 352 visual tokens")
    ask(page)
    assert answer_text(page, "A") == "J"
