"""What a newcomer finds on the first page, and the words that the pages agree on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from benchmarks.report import RESULTS
from benchmarks.report.headline import table_rows
from vllm_prune.visual.models.table import FAMILIES
from vllm_prune.vllm_compat.version import SUPPORTED

from .pages import PAGES, ROOT, name

README = ROOT / "README.md"
FIRST_SCREENS = 60
"""Lines that are read without scrolling twice."""


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_models_versions_cost_and_gain_are_on_the_first_screens() -> None:
    first = "\n".join(README.read_text().splitlines()[:FIRST_SCREENS])
    for words in ("Qwen2.5-VL", "Qwen3-VL", "Molmo2", "<!-- /headline -->", "limits"):
        assert words in first, f"{words} comes too late"
    assert f"| vLLM | {', '.join(SUPPORTED)} |" in first
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"| Python | {python.removeprefix('>=').partition(',')[0]} or later" in first


def test_the_limits_name_every_family() -> None:
    page = (ROOT / "docs" / "limits.md").read_text()
    assert [name for name in FAMILIES if f"| `{name}` |" not in page] == []


def test_the_headline_has_five_budgets_with_their_hardware() -> None:
    rows = table_rows(RESULTS)
    assert len(rows) == 5
    assert all(re.search(r"EPYC|Xeon|NVIDIA", row[-1]) for row in rows)
    assert all(re.match(r"\d+\.\d\dx \(\d", row[1]) for row in rows)


def test_a_visual_token_is_defined_once_for_users() -> None:
    assert README.read_text().count("A **visual token** is") == 1


@pytest.mark.parametrize("page", [page for page in PAGES if "benchmarks" not in str(page)], ids=name)
def test_visual_tokens_have_one_name(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        page_text = page.read_text().partition("\n## [0")[0]
    else:
        page_text = page.read_text()
    assert re.findall(r"\b[Cc]ells?\b", page_text) == []
