"""Every generated part is what its generator prints now."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from benchmarks.report import PAGES, PARTS, fill
from benchmarks.report.files import NOT_MEASURED
from benchmarks.report.schema import attributes, default, kind
from benchmarks.report.settings import SECTIONS
from vllm_prune.config.load import PruneConfig
from vllm_prune.config.section import Section

from .pages import ROOT, name

OPENING = re.compile(r"^<!-- (\w+) -->$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_is_as_generated(page: Path) -> None:
    text = page.read_text()
    assert fill(text) == text, f"{name(page)} is stale; run: python -m benchmarks.report"
    assert NOT_MEASURED not in text


def test_a_changed_cell_is_noticed() -> None:
    text = (ROOT / "README.md").read_text()
    assert fill(re.sub(r"\d\.\d\dx", "9.99x", text, count=1)) == text


def test_every_part_is_on_a_page_and_every_marker_has_a_generator() -> None:
    used = [marker for page in PAGES for marker in OPENING.findall(page.read_text())]
    assert sorted(used) == sorted(PARTS)


def test_a_marker_without_a_generator_is_an_error() -> None:
    with pytest.raises(KeyError):
        fill("<!-- weather -->\nrain\n<!-- /weather -->")


def test_every_setting_has_a_text_of_its_docstring() -> None:
    for where, model in SECTIONS.items():
        assert set(model.model_fields) <= set(attributes(model)), f"{where}: name every field under `Attributes:`"


def test_every_section_of_the_file_is_described() -> None:
    sections = {name for name in PruneConfig.model_fields if name != "presets"}
    assert sections <= set(SECTIONS)
    for where, model in SECTIONS.items():
        nested = {name for name, field in model.model_fields.items() if _is_section(field.annotation)}
        described = {name.partition(".")[2] for name in SECTIONS if name.startswith(f"{where}.")}
        # A tenant's limits are those of the server.
        assert nested - {"limits"} <= described


def _is_section(annotation: Any) -> bool:
    kinds = get_args(annotation) or (annotation,)
    return any(isinstance(one, type) and issubclass(one, Section) for one in kinds)


def test_words_for_fields() -> None:
    ratio = {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {"type": "null"}], "default": None}
    assert kind(ratio, {}) == "number, over 0, at most 1"
    assert kind({"type": "integer", "minimum": 1}, {}) == "integer, 1 or more"
    assert kind({"enum": ["clamp", "reject"]}, {}) == "`clamp` or `reject`"
    assert default("max_bytes", {"default": 128 << 20}) == "128 MiB"
    assert default("burst", {"default": 1}) == "1"
    assert default("keep", {}) == "required"
