"""What we rely on in vLLM is there, and what is checked is what is used."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_prune.vllm_compat import signatures
from vllm_prune.vllm_compat.signatures import ALL_SIGNATURES, Home, UnknownSignature, VllmSignature

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "vllm_prune/vllm_compat/signatures"
PRODUCT = sorted(
    p for folder in ("vllm_prune", "server") for p in (ROOT / folder).rglob("*.py") if TABLE not in p.parents
)
PRESENT = Home("vllm.multimodal.utils", "copy_mm_embedding_modality", ("src", "dst"))
MISSING = Home("vllm.multimodal.utils", "no_such_function")
MOVED = Home("vllm.no_such_module", "copy_mm_embedding_modality")
CHANGED = Home("vllm.multimodal.utils", "copy_mm_embedding_modality", ("source",))


def entry(*homes: Home) -> VllmSignature:
    newest, *older = homes
    return VllmSignature(newest.module, newest.name, newest.parameters, tuple(older))


def test_every_name_is_as_expected() -> None:
    assert signatures.signature_problems(ALL_SIGNATURES) == []


def test_a_missing_name_or_parameter_is_reported() -> None:
    assert "no_such_function" in (entry(MISSING).problem() or "")
    assert "no_such_module" in (entry(MOVED).problem() or "")
    assert "source" in (entry(CHANGED).problem() or "")
    assert all(word in (entry(MOVED, MISSING).problem() or "") for word in ("no_such_module", "no_such_function"))


@pytest.mark.parametrize("newer", [MISSING, MOVED, CHANGED])
def test_an_older_home_is_used_where_the_newer_is_not_as_expected(newer: Home) -> None:
    import vllm.multimodal.utils as module

    both = entry(newer, PRESENT)
    assert both.problem() is None
    assert both.home() == PRESENT
    assert both.load() is module.copy_mm_embedding_modality
    assert both.holder() is module


def test_the_newest_home_comes_first() -> None:
    both = entry(PRESENT, Home("vllm.multimodal.utils", "copy_mm_embedding_modality"))
    assert both.home() == PRESENT


def test_a_name_without_a_home_cannot_be_loaded() -> None:
    with pytest.raises(UnknownSignature, match="no_such_function"):
        entry(MOVED, MISSING).load()


def test_names_are_looked_up_in_the_table() -> None:
    from vllm.renderers.base import BaseRenderer

    assert signatures.holder("BaseRenderer.render_chat_async") is BaseRenderer
    assert signatures.holder("vllm.renderers.base:BaseRenderer.render_chat_async") is BaseRenderer
    with pytest.raises(LookupError, match="no_such_name"):
        signatures.load("no_such_name")


def test_no_name_is_in_the_table_twice() -> None:
    assert [key for key, count in Counter((e.module, e.name) for e in ALL_SIGNATURES).items() if count > 1] == []


def calls_of(path: Path, names: tuple[str, ...]) -> Iterator[ast.Constant]:
    """First arguments, where they are written out, of calls of some functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or getattr(node.func, "attr", getattr(node.func, "id", "")) not in names:
            continue
        if node.args and isinstance(node.args[0], ast.Constant):
            yield node.args[0]


def test_what_is_loaded_by_name_is_in_the_table() -> None:
    """Also what a path that no test takes would load."""
    used = [
        str(argument.value)
        for path in PRODUCT
        if "signatures import" in path.read_text()
        for argument in calls_of(path, ("load", "holder", "wrap"))
    ]
    assert len(used) > 20
    for name in used:
        signatures.entry_of(name)


def test_nothing_of_vllm_is_imported_by_its_name_past_the_table() -> None:
    """`import_module("vllm...")` in a caller would go on to look where only an older vLLM has it."""
    for path in PRODUCT:
        names = [str(argument.value) for argument in calls_of(path, ("import_module",))]
        assert not [name for name in names if name.startswith("vllm.")], path


def test_what_moved_and_what_is_private_is_not_imported_past_the_table() -> None:
    moved = {home.name.split(".")[0] for e in ALL_SIGNATURES if e.older for home in e.homes}
    assert moved
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                names = {alias.name for alias in node.names}
                assert not names & moved, (path, names & moved)
                assert not [name for name in names if name.startswith("_")], path
