"""Examples that need no server: configuration, the field, commands, Python that uses the library.

Requests are run against a real server by tests/server/test_documentation.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from vllm_prune.budget.canonical import canonical, canonical_kv
from vllm_prune.budget.errors import BudgetError
from vllm_prune.budget.fields import parse_pruning
from vllm_prune.config.load import ConfigError, load

from .checks import check, commands
from .pages import LANGUAGES, ROOT, WITH_EXAMPLES, Example, codes, examples, name
from .sessions import outputs

SECTION = re.compile(
    r"(defaults|limits|presets|tenants|admission|media|logging|playground|stts|vision_selector|weights): \{"
)
USAGE = {
    "visual": {"strategy", "input_tokens", "kept_tokens"},
    "kv": {"strategy", "prompt_tokens", "kept_tokens", "evicted_tokens", "freed_blocks", "compactions"},
}
CLAMPED = {"param", "requested", "applied", "reason"}

ALL = [example for page in WITH_EXAMPLES for example in examples(page)]


def of(*languages: str) -> list[Any]:
    return [pytest.param(one, id=one.place) for one in ALL if one.language in languages and not one.not_run]


def test_every_block_has_a_language_that_is_checked() -> None:
    for example in ALL:
        assert example.language in (*LANGUAGES, "text"), f"{example.place}: {example.language!r} has no check"


def check_field(value: Any) -> None:
    field = parse_pruning(value)
    if field.visual is not None:
        canonical(field.visual)
    if field.kv is not None:
        canonical_kv(field.kv)


def check_json(value: dict[str, Any]) -> None:
    """A request with the field, the field itself, or `usage.pruning`."""
    if "vllm_xargs" in value:
        check_field(json.loads(value["vllm_xargs"]["pruning"]))
    elif "pruning" in value:
        check_field(value["pruning"])
    elif "clamped" in value:
        assert set(value) == {*USAGE, "clamped"}
        assert all(value[part] is None or set(value[part]) == keys for part, keys in USAGE.items())
        assert all(set(entry) == CLAMPED for entry in value["clamped"])
    else:
        assert set(value) <= {"visual", "kv"}, "neither a request, nor a budget, nor usage.pruning"
        check_field(value)


@pytest.mark.parametrize("example", of("json"))
def test_json_is_a_request_a_budget_or_usage(example: Example) -> None:
    check_json(json.loads(example.text))


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name)
def test_json_within_the_text_is_a_budget(page: Path) -> None:
    for code in codes(page):
        if code.startswith('{"'):
            check_json(json.loads(code))


@pytest.mark.parametrize("value", [{"visual": {"keep": 2}}, {"pruning": {"kv": {}}}, {"weather": 1}])
def test_wrong_json_is_noticed(value: dict[str, Any]) -> None:
    with pytest.raises((AssertionError, BudgetError)):
        check_json(value)


@pytest.mark.parametrize("example", of("yaml"))
def test_yaml_is_a_configuration(example: Example, tmp_path: Path) -> None:
    (tmp_path / "prune.yaml").write_text(example.text)
    load(tmp_path / "prune.yaml")


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name)
def test_yaml_within_the_text_is_a_configuration(page: Path, tmp_path: Path) -> None:
    for code in codes(page):
        if SECTION.match(code):
            (tmp_path / "prune.yaml").write_text(code)
            load(tmp_path / "prune.yaml")


def test_wrong_yaml_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "prune.yaml").write_text("limits: {keep: 1}")
    with pytest.raises(ConfigError):
        load(tmp_path / "prune.yaml")


def _starts_vllm(words: list[str]) -> bool:
    """Whether vLLM's own parser reads the command, which takes its time to import."""
    return words[0] != "make" and "serve" in words


COMMANDS = [
    pytest.param(words, id=f"{one.values[0].place} {words[0]}", marks=[pytest.mark.slow] if _starts_vllm(words) else ())
    for one in of("bash")
    if not one.values[0].is_request
    for words in commands(one.values[0].text)
]


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_that_are_not_run_are_valid(words: list[str]) -> None:
    check(words)


@pytest.mark.parametrize(
    "line",
    ["make nothing", "make serve MODELL=x", "vllm-prune sweep --limit x y", "vllm-prune nothing",
     pytest.param("vllm-prune serve x --no-such-flag 1", marks=pytest.mark.slow),
     "python -m benchmarks.nothing", "python -m benchmarks.stts.speed --no-such", "frobnicate"],
)  # fmt: skip
def test_wrong_commands_are_noticed(line: str) -> None:
    (words,) = commands(line)
    with pytest.raises((AssertionError, KeyError, SystemExit, typer.BadParameter)):
        check(words)


def library_session(page: Path) -> list[Example]:
    """The page's Python that needs no server."""
    return [one for one in examples(page, "python") if not one.not_run and not one.is_request]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in WITH_EXAMPLES if library_session(page)], ids=name)
def test_python_without_a_server_runs(page: Path) -> None:
    for block, printed in outputs(library_session(page)):
        if block.output is not None:
            assert printed.strip() == block.output.strip(), block.place


def test_files_that_commands_name_exist() -> None:
    for example in (one for one in ALL if one.language == "bash"):
        for path in re.findall(r"(?<![\w/.])(?:deploy|benchmarks|docs|tests|scripts)/[\w./-]+", example.text):
            assert (ROOT / path).exists(), f"{example.place}: there is no {path}"


def test_reasons_are_given_for_what_is_not_run() -> None:
    for example in ALL:
        if example.language in LANGUAGES and example.not_run:
            assert len(example.not_run) > 8, f"{example.place}: say why it is not run"
