"""What keeps the tree readable: small modules, few files at the top, one context variable, patches in one place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from .test_layers import MODULES, ROOT

MOST_LINES = 300
MOST_TOP_ENTRIES = 8


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_are_short(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= MOST_LINES


def test_the_top_of_the_package_is_short() -> None:
    files = [path.name for path in (ROOT / "vllm_prune").iterdir() if path.is_file()]
    assert len(files) <= MOST_TOP_ENTRIES, files


def test_there_is_one_context_variable() -> None:
    places = [module for module, path in MODULES.items() if re.search(r"\bContextVar\(", path.read_text())]
    assert places == ["vllm_prune.request"]


def test_only_vllm_compat_sets_attributes_of_what_it_imports_from_vllm() -> None:
    """`vllm_object.attribute = ...` at class or module level patches vLLM for everybody in the process."""
    for module, path in MODULES.items():
        if module.startswith("vllm_prune.vllm_compat"):
            continue
        tree = ast.parse(path.read_text())
        from_vllm = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vllm"
            for alias in node.names
        }
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                    assert target.value.id not in from_vllm, (module, target.lineno)


def test_tests_mirror_the_tree() -> None:
    """A folder of tests has the name of a folder of sources, or is a tier of its own."""
    tiers = {
        "architecture",
        "bench",
        "benchmarks",
        "deploy",
        "docs",
        "engine",
        "frontend",
        "playground",
        "scripts",
        "server",
        "sweep",
    }
    for folder in (ROOT / "tests").iterdir():
        if folder.is_dir() and not folder.name.startswith((".", "__")) and folder.name not in tiers:
            assert (ROOT / "vllm_prune" / folder.name).is_dir(), folder


def test_the_names_that_users_write_are_there() -> None:
    """Command lines and configuration files of users hold these; they outlive any reordering."""
    source = Path(ROOT / "vllm_prune/__init__.py").read_text()
    assert '__all__ = ["__version__", "register"]' in source
    for module, name in (
        ("vllm_prune.kv.scheduler", "CompactingScheduler"),
        ("vllm_prune.kv.worker", "CompactingWorker"),
    ):
        classes = [n.name for n in ast.parse(MODULES[module].read_text()).body if isinstance(n, ast.ClassDef)]
        assert name in classes
