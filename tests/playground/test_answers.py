"""Questions: several settings side by side, streams, the figures of the server, and what can be taken along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import Site
from .page_parts import (
    EXAMPLES,
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
    picture_file,
    slide,
    usage_of,
)

LETTERS = ("A", "B", "C", "D")


def answers_of(page: Page) -> list[Response]:
    """Answers to questions, in their order; filled while the page asks."""
    answers: list[Response] = []
    page.on("response", lambda one: answers.append(one) if one.url.endswith("/chat/completions") else None)
    return answers


def test_four_settings_and_the_reference_show_the_servers_figures(page: Page) -> None:
    answers = answers_of(page)
    example(page, "a web page")
    for _ in LETTERS[1:]:
        page.get_by_role("button", name="Add a setting").click()
    expect(page.get_by_role("button", name="Add a setting")).to_be_disabled()
    page.get_by_label("Visual strategy of setting C").select_option("uniform")
    page.get_by_label("KV cache strategy of setting D").select_option("snapkv")
    ask(page)
    assert len(answers) == 5
    for name, answer in zip(("reference", *LETTERS), answers, strict=True):
        usage = usage_of(answer)
        assert number(page, "Prompt tokens", name).split()[0] == str(usage["prompt_tokens"])
        assert number(page, "Answer tokens", name) == str(usage["completion_tokens"])
        assert number(page, "First token", name).endswith(" ms")
        visual = usage["pruning"]["visual"]
        assert number(page, "Visual tokens", name) == f"{visual['kept_tokens']} of {visual['input_tokens']}"
        if name == "reference":
            assert visual["kept_tokens"] == visual["input_tokens"]
            continue
        expect(column(page, name).locator(".caption")).to_contain_text("kept by the engine")
        (flags,) = flags_of(visual["items"][0])
        assert (drawn_flags(overlay(page, name), *flags.shape) == flags).all()
    kv = usage_of(answers[4])["pruning"]["kv"]
    assert number(page, "KV rows", "D") == f"{kv['kept_tokens']} of {kv['prompt_tokens']}"
    assert number(page, "Freed blocks", "D") == str(kv["freed_blocks"])
    assert number(page, "KV rows", "A") == "–"


def test_the_fields_of_the_request(page: Page, site: Site, previews: Previews) -> None:
    controls = site.controls
    choose(page, picture_file())
    page.get_by_label("Unit of the budget, Visual of setting A").select_option("max_tokens")
    slide(page, 20)
    page.get_by_text("about divprune").click()
    page.get_by_label("where, Visual of setting A").select_option("tower")
    page.get_by_label("KV cache strategy of setting A").select_option("gui_kv")
    page.get_by_label("Longest answer, in tokens").fill("7")
    page.get_by_role("textbox", name="Question").fill("what is it ?")
    previews.settle()
    ask(page)
    reference, pruned = controls.chats
    assert reference["pruning"] == {"visual": None, "kv": None}
    assert pruned["pruning"] == {
        "visual": {"strategy": "divprune", "max_tokens": 20, "options": {"where": "tower"}, "return_kept": True},
        "kv": {"strategy": "gui_kv", "keep": 0.5},
    }
    assert pruned["stream_options"] == {"include_usage": True}
    assert (pruned["max_completion_tokens"], pruned["temperature"], pruned["stream"]) == (7, 0, True)
    kinds = [part["type"] for part in pruned["messages"][0]["content"]]
    assert kinds == ["image_url", "text"]
    assert "return_kept" not in controls.previews[-1]["visual"]


@pytest.mark.parametrize("text", ["0.35", "0.05", "1e-2", ".2", "1"])
def test_a_budget_can_be_typed_digit_by_digit(page: Page, text: str) -> None:
    field = page.get_by_label("Budget as a number, Visual of setting A")
    slider = page.get_by_label("Budget, Visual of setting A", exact=True)
    field.press("Control+A")
    field.press_sequentially(text)
    assert field.input_value() == text
    assert float(slider.input_value()) == float(text)
    field.fill("")
    field.blur()
    assert float(field.input_value()) == float(text)
    slider.fill("0.6")
    assert field.input_value() == "0.6"


def test_a_setting_may_prune_the_cache_alone(page: Page, site: Site) -> None:
    controls = site.controls
    choose(page, picture_file())
    page.get_by_label("Visual strategy of setting A").select_option("")
    page.get_by_label("KV cache strategy of setting A").select_option("snapkv")
    expect(column(page).locator(".caption")).to_contain_text("visual tokens are not pruned")
    ask(page, "what is it ?")
    assert controls.chats[-1]["pruning"] == {"visual": None, "kv": {"strategy": "snapkv", "keep": 0.5}}
    assert number(page, "Visual tokens") == "54 of 54"
    assert number(page, "KV rows") == "39 of 78"


def test_a_preset_of_the_operator_is_a_setting(page: Page, site: Site) -> None:
    controls = site.controls
    choose(page, picture_file())
    page.get_by_label("Preset of setting A").select_option("fast")
    ask(page, "what is it ?")
    assert controls.chats[-1]["pruning"]["visual"] == {"strategy": "uniform", "keep": 0.25, "return_kept": True}
    expect(column(page).locator(".caption b")).to_have_text(str(int(54 * 0.25)))


def test_pictures_are_named_before_them_where_the_question_counts_them(page: Page, site: Site) -> None:
    controls = site.controls
    example(page, "three screenshots")
    ask(page)
    parts = controls.chats[-1]["messages"][0]["content"]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    assert texts[:3] == ["picture 1 ", "picture 2 ", "picture 3 "]
    assert [part["type"] for part in parts] == ["text", "image_url"] * 3 + ["text"]


def test_every_question_names_its_media_anew_so_that_no_cache_shortens_it(page: Page, site: Site) -> None:
    controls = site.controls
    example(page, "three screenshots")
    ask(page)
    page.get_by_role("button", name="(setting A alone)").click()
    expect(page.get_by_role("button", name="Ask all")).to_be_enabled()
    names = [part["uuid"] for chat in controls.chats for part in chat["messages"][0]["content"] if "uuid" in part]
    assert len(names) == len(set(names)) == 9
    assert all(len(name) > 24 for name in names)


def test_an_answer_is_shown_while_it_comes_and_can_be_cancelled(page: Page, site: Site) -> None:
    controls = site.controls
    controls.answer = "grün " * 400 + "Ende"
    controls.piece_seconds = 0.02
    choose(page, picture_file())
    page.get_by_role("textbox", name="Question").fill("what is it ?")
    page.get_by_label("also ask without a budget, as the reference").uncheck()
    page.get_by_role("button", name="Ask", exact=True).click()
    text = column(page).locator(".answer .text")
    expect(text).to_contain_text("grün grün")
    expect(page.locator(".waiting")).to_contain_text("Setting A: answering")
    early = len(text.inner_text())
    page.get_by_role("button", name="Cancel").click()
    expect(column(page).locator(".answer")).to_contain_text("cancelled")
    late = text.inner_text()
    assert early <= len(late) < len(controls.answer)
    assert set(late.split()) <= {"grün", "gr", "grü"}
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


def test_an_answer_is_marked_when_its_setting_changes(page: Page) -> None:
    choose(page, picture_file())
    ask(page, "what is it ?")
    expect(column(page).locator(".answer.stale")).to_have_count(0)
    slide(page, 0.3)
    expect(column(page).locator(".answer")).to_contain_text("earlier setting or question")
    expect(column(page, "reference").locator(".answer.stale")).to_have_count(0)
    assert number(page, "Answer tokens") == "–"
    page.get_by_role("button", name="(setting A alone)").click()
    expect(column(page).locator(".answer.stale")).to_have_count(0)


def snippet(page: Page, kind: str) -> str:
    """Text of the copy dialog, by way of the clipboard."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy as… (setting A)").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name=kind, exact=True).click()
    dialog.get_by_role("button", name="Copy", exact=True).click()
    expect(dialog.get_by_role("status")).to_have_text("copied")
    text: str = page.evaluate("() => navigator.clipboard.readText()")
    assert text == dialog.locator("pre").inner_text() or text.strip() == dialog.locator("pre").inner_text().strip()
    dialog.get_by_role("button", name="Close").click()
    return text


HARD = """what's `in` "it" \\ $HOME ? ✓"""


@pytest.mark.parametrize("kind", ["curl", "OpenAI SDK"])
def test_copied_text_asks_the_same(page: Page, site: Site, tmp_path: Path, kind: str) -> None:
    controls = site.controls
    name = "it's a screen.png"
    file = picture_file(name=name)
    (tmp_path / name).write_bytes(file["buffer"])
    choose(page, file, EXAMPLES / "clip.mp4")
    expect(page.locator(".files li")).to_have_count(2)
    (tmp_path / "clip.mp4").write_bytes((EXAMPLES / "clip.mp4").read_bytes())
    page.get_by_label("write “picture 1”").check()
    page.get_by_label("KV cache strategy of setting A").select_option("snapkv")
    ask(page, HARD)
    by_page = controls.chats[-1]
    text = snippet(page, kind)
    command = ["bash", "-c", text] if kind == "curl" else [sys.executable, "-c", text]
    environment = {**os.environ, "OPENAI_API_KEY": "k"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert controls.answer in done.stdout
    copied = controls.chats[-1]
    assert copied is not by_page
    del by_page["pruning"]["visual"]["return_kept"], by_page["stream"], by_page["stream_options"]
    for part in by_page["messages"][0]["content"]:
        part.pop("uuid", None)
    assert copied == by_page


def test_a_copied_preset_is_configuration(page: Page) -> None:
    choose(page, picture_file())
    page.get_by_text("about divprune").click()
    page.get_by_label("after, Visual of setting A").fill("2")
    configuration: dict[str, Any] = yaml.safe_load(snippet(page, "preset"))
    wanted = {"visual": {"strategy": "divprune", "keep": 0.5, "options": {"after": 2}}, "kv": None}
    assert configuration == {"presets": {"my-budget": wanted}}


def test_the_bundled_example_from_the_choice_to_another_budget(page: Page, previews: Previews) -> None:
    """The way of a newcomer: take the example, see the overlay, ask, move the slider, see both change."""
    example(page, "a web page")
    before = previews.flags()[0].sum()
    ask(page)
    answer = column(page).locator(".answer .text")
    expect(answer).not_to_have_text("")
    slide(page, 0.1)
    after = previews.flags()[0].sum()
    assert after < before
    expect(column(page).locator(".caption b")).to_have_text(str(after))
    ask(page)
    expect(column(page).locator(".caption")).to_contain_text("kept by the engine")
    assert number(page, "Visual tokens").split()[0] == str(after)
