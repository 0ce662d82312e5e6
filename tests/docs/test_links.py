"""Every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from .pages import PAGES, ROOT, anchors, codes, links, name


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_and_anchor_exists(page: Path) -> None:
    for link in links(page):
        url = urlparse(link)
        if url.scheme:
            continue
        target = (page.parent / unquote(url.path)).resolve() if url.path else page
        assert target.exists(), f"{name(page)} links to {link}, which does not exist"
        assert target.is_relative_to(ROOT), f"{name(page)} links to {link}, outside the repository"
        if url.fragment:
            assert url.fragment in anchors(target), f"{name(page)} links to {link}; {name(target)} has no such heading"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name)
def test_every_path_in_the_text_exists(page: Path) -> None:
    for code in codes(page):
        match = re.match(r"(?:vllm_prune|server|benchmarks|tests|docs|deploy|scripts)/[\w./*-]*", code)
        # Capitals stand for a name of the reader's; the scorer's place is below a checkpoint's folder.
        if match and not re.search(r"[A-Z]{3}", match[0].replace("README.md", "")):
            assert list(ROOT.glob(match[0].rstrip("/."))), f"{name(page)} names {code}, which does not exist"


def test_every_page_of_docs_is_in_its_contents() -> None:
    contents = ROOT / "docs" / "README.md"
    listed = {(contents.parent / link.partition("#")[0]).resolve() for link in links(contents)}
    assert set((ROOT / "docs").glob("*.md")) - {contents} <= listed


def test_the_readme_links_to_the_pages_of_docs() -> None:
    listed = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "README.md"} <= listed


def test_anchors_follow_the_host(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `limits.kv` heading, twice\n\n## Twice\n\n## Twice\n\n[x](#twice-1)\n")
    assert anchors(page) == {"a-limitskv-heading-twice", "twice", "twice-1"}
