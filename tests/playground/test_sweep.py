"""A result of `vllm-prune sweep` on the page: points, intervals, and a budget taken over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_prune.sweep import UNPRUNED, Arm, Cell, Sample, kv_arms, visual_arms
from vllm_prune.sweep.arms import combined
from vllm_prune.sweep.client import Answer
from vllm_prune.sweep.graders import Expectation
from vllm_prune.sweep.report import rows

from ..docs.pages import ROOT, examples
from .conftest import Site
from .page_parts import SWEEP, Page, ask, choose, expect, load_sweep, picture_file, pixels_of


def answers(right: int, kept: int, evicted: int = 0) -> tuple[Answer, ...]:
    """Eight answers, the first `right` of them right."""
    return tuple(Answer(f"s{i}", "x", i < right, 20 + kept, 100, kept, 120, evicted) for i in range(8))


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """What the report writes for known answers."""
    samples = [Sample(f"s{i}", {"messages": []}, Expectation("x"), "even" if i % 2 == 0 else "odd") for i in range(8)]
    visual, kv = visual_arms(["divprune"], [0.5, 0.25]), kv_arms(["snapkv"], [0.2])
    arms: dict[str, Arm] = {arm.name: arm for arm in [*visual, *kv, *combined(visual, kv)]}
    cells = [
        Cell(UNPRUNED, answers(8, 100)),
        Cell(arms["visual divprune 0.5"], answers(7, 50)),
        Cell(arms["visual divprune 0.25"], answers(4, 25)),
        Cell(arms["visual uniform 0.5"], (), "sample s0: 400 no"),
        Cell(arms["kv snapkv 0.2"], answers(8, 100, 96)),
        Cell(arms["both divprune + snapkv 0.2 0.5"], answers(6, 50, 56)),
    ]
    return {"data": "mine.jsonl", "samples": 8, "model": "models/demo", "rows": rows(cells, samples)}


def as_file(content: Any, name: str = "sweep.json") -> dict[str, Any]:
    """JSON as a file for an input element."""
    text = content if isinstance(content, str) else json.dumps(content)
    return {"name": name, "mimeType": "application/json", "buffer": text.encode()}


def test_the_table_has_the_reports_figures(page: Page, result: dict[str, Any]) -> None:
    load_sweep(page, as_file(result))
    panel = page.locator(".sweep")
    expect(panel).to_contain_text("mine.jsonl, models/demo, 8 samples")
    row = next(
        one for one in result["rows"] if (one["strategy"], one["keep"], one["group"]) == ("divprune", 0.5, "all")
    )
    shown = panel.get_by_role("row").filter(has=page.get_by_role("radio", name="divprune 0.5"))
    interval = f"{100 * row['accuracy_low']:.1f}% to {100 * row['accuracy_high']:.1f}%"
    assert shown.get_by_role("cell").all_inner_texts() == ["0.5", "87.5%", interval, "50.0%"]
    expect(panel.get_by_role("row").filter(has_text="refused: sample s0: 400 no")).to_have_count(1)
    panel.get_by_label("Samples").select_option("odd")
    assert "75.0%" in shown.inner_text()
    panel.get_by_label("Cost").select_option("prompt_tokens")
    assert shown.get_by_role("cell").all_inner_texts()[-1] == "70"


@pytest.mark.parametrize(
    ("part", "point", "wanted"),
    [
        ("visual", "divprune 0.25", {"visual": {"strategy": "divprune", "keep": 0.25}, "kv": None}),
        ("kv", "snapkv 0.2", {"visual": None, "kv": {"strategy": "snapkv", "keep": 0.2}}),
        (
            "both",
            "divprune + snapkv 0.2 0.5",
            {"visual": {"strategy": "divprune", "keep": 0.5}, "kv": {"strategy": "snapkv", "keep": 0.2}},
        ),
    ],
)
def test_a_points_budget_is_taken_over(
    page: Page, site: Site, result: dict[str, Any], part: str, point: str, wanted: dict[str, Any]
) -> None:
    controls = site.controls
    load_sweep(page, as_file(result))
    panel = page.locator(".sweep")
    button = panel.get_by_role("button", name="Use this budget")
    expect(button).to_be_disabled()
    panel.get_by_label("Part").select_option(part)
    panel.get_by_role("radio", name=point).check()
    button.click()
    expect(panel.locator(".take")).to_contain_text("setting A has it")
    choose(page, picture_file())
    ask(page, "what is it ?")
    sent = controls.chats[-1]["pruning"]
    if sent["visual"]:
        del sent["visual"]["return_kept"]
    assert sent == wanted


def test_a_click_in_the_plot_chooses_its_point_and_intervals_are_drawn(page: Page, result: dict[str, Any]) -> None:
    load_sweep(page, as_file(result))
    plot = page.locator(".u-over")
    box = plot.bounding_box()
    assert box is not None
    # Axes: 0 to 1.04 times the largest cost (the half), and 0 to 1.02.
    x, y = box["width"] * 0.5 / (0.5 * 1.04), box["height"] * (1 - 0.875 / 1.02)
    plot.click(position={"x": x, "y": y})
    expect(page.get_by_role("radio", name="divprune 0.5")).to_be_checked()
    expect(page.locator(".take")).to_contain_text("87.5%")
    canvas = page.locator(".chart canvas")
    pixels = pixels_of(canvas).astype(int)
    # The click may have scrolled the page.
    frame, box = canvas.bounding_box(), plot.bounding_box()
    assert frame is not None
    assert box is not None
    scale = pixels.shape[1] / frame["width"]
    row = next(
        one for one in result["rows"] if (one["strategy"], one["keep"], one["group"]) == ("divprune", 0.5, "all")
    )
    at = round((box["x"] - frame["x"] + x) * scale)

    def blue(accuracy: float) -> bool:
        """Whether the first line's colour is drawn at this height."""
        line = round((box["y"] - frame["y"] + box["height"] * (1 - accuracy / 1.02)) * scale)
        area = pixels[line - 2 : line + 3, at - 1 : at + 2]
        return bool(((area[..., 2] - area[..., 0] > 60) & (area[..., 3] > 60)).any())

    low, high = row["accuracy_low"], row["accuracy_high"]
    assert all(blue(one) for one in np.linspace(low + 0.01, high - 0.01, 12))
    assert not blue(low - 0.06)


def test_the_way_of_the_first_five_minutes_ends_in_its_preset(page: Page) -> None:
    """Load the project's own result, take a point's budget over, copy it as a preset: as the documentation has it."""
    (documented,) = examples(ROOT / "docs" / "first-five-minutes.md", "yaml")
    load_sweep(page, SWEEP)
    page.get_by_role("radio", name="divprune 0.5").check()
    page.get_by_role("button", name="Use this budget").click()
    page.get_by_role("button", name="Copy as… (setting A)").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="preset", exact=True).click()
    assert dialog.locator("pre").inner_text().strip() == documented.text.strip()


def test_the_repositorys_own_result_is_read(page: Page) -> None:
    load_sweep(page, SWEEP)
    body = json.loads(Path(SWEEP).read_text())
    points = [one for one in body["rows"] if (one["part"], one["group"]) == ("visual", "all") and one["n"]]
    expect(page.locator(".sweep").get_by_role("radio")).to_have_count(len(points))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is not JSON"),
        ("[]", "has no rows"),
        ({"rows": [{"strategy": "x", "keep": 1, "part": "visual", "group": "all", "n": 3}]}, "accuracy is missing"),
        ({"rows": [7]}, "row 1"),
    ],
)
def test_a_file_that_is_no_result_is_refused(page: Page, content: Any, message: str) -> None:
    load_sweep(page, as_file(content, "other.json"))
    expect(page.locator(".sweep").get_by_role("alert")).to_contain_text(message)
    expect(page.locator(".sweep").get_by_role("alert")).to_contain_text("other.json")
