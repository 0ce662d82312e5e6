"""A real Chromium, and the page on a mock of the public routes, or on a real server.

`VLLM_PRUNE_PLAYGROUND_URL=http://127.0.0.1:8000` runs the tests against the page of that server; those that need the
mock's controls are skipped then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.tasks.render import browser as chromium

from .mock import Controls, Mock

if TYPE_CHECKING:
    from .page_parts import Browser, ConsoleMessage, Page, Previews

MILLISECONDS = 60_000
"""Longest wait for anything on the page; a machine that runs engines beside the browser is slow."""
WIDE = {"width": 1440, "height": 960}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the browser out of the quick tests: each takes a second, and they are many."""
    for item in items:
        if item.path.parent == Path(__file__).parent and "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@dataclass
class Site:
    """Where the page is.

    Attributes:
        url: of the server.
        mock: its controls, None on a real server.
    """

    url: str
    mock: Mock | None

    @property
    def controls(self) -> Controls:
        """The mock's controls; the test is skipped on a real server."""
        if self.mock is None:
            pytest.skip("needs the mock's controls")
        return self.mock.controls


@dataclass
class Watched:
    """What a page said that it should not say."""

    problems: list[str] = field(default_factory=list)
    origins: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless; for one module, as an event loop runs in this thread until it has ended."""
    try:
        path = chromium()
    except RuntimeError as error:
        pytest.skip(str(error))
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=MILLISECONDS)
    with sync_playwright() as playwright:
        # A container has neither the namespaces for the browser's sandbox nor a large /dev/shm.
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        started = playwright.chromium.launch(executable_path=path, args=flags)
        yield started
        started.close()


@pytest.fixture(scope="package")
def shared_site() -> Iterator[Site]:
    """The server of all tests."""
    if url := os.environ.get("VLLM_PRUNE_PLAYGROUND_URL"):
        yield Site(url.rstrip("/"), None)
        return
    with Mock() as mock:
        yield Site(mock.url, mock)


@pytest.fixture
def site(shared_site: Site) -> Site:
    """The server with its usual behaviour."""
    if shared_site.mock is not None:
        shared_site.mock.controls = Controls()
    return shared_site


@pytest.fixture
def watched() -> Watched:
    """What `page` said; tests that provoke a message remove it."""
    return Watched()


@pytest.fixture
def page(browser: Browser, site: Site, watched: Watched) -> Iterator[Page]:
    """The page, opened. Afterwards nothing has been blocked by the policy, thrown, or sent to another origin."""
    context = browser.new_context(viewport=WIDE, color_scheme="light")
    context.set_default_timeout(MILLISECONDS)
    opened = context.new_page()
    watch(opened, site, watched)
    opened.goto(f"{site.url}/playground")
    yield opened
    context.close()
    assert watched.problems == []
    assert watched.origins <= {site.url}


@pytest.fixture
def previews(page: Page) -> Previews:
    """Answers of the page's previews."""
    from .page_parts import Previews

    return Previews(page)


def watch(opened: Page, site: Site, watched: Watched) -> None:
    """Collect violations of the policy, uncaught errors and origins."""

    def said(message: ConsoleMessage) -> None:
        # Chromium logs every answer of 400 or more; the page shows those itself.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            watched.problems.append(message.text)

    opened.on("console", said)
    opened.on("pageerror", lambda error: watched.problems.append(str(error)))
    opened.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("blob:", "data:"))
            else watched.origins.add("/".join(request.url.split("/")[:3]))
        ),
    )
