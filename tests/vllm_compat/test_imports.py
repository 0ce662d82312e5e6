"""Every name of vLLM that the project imports is there in the installed vLLM, also where no test goes."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FOLDERS = ("vllm_prune", "server", "benchmarks", "tests", "scripts")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
GPU_ONLY = {"vllm.v1.worker.gpu_worker"}
"""Modules that a CPU build cannot import, as they load kernels for a GPU."""


def is_vllm(module: str | None) -> bool:
    return (module or "").split(".")[0] == "vllm"


def tolerated(tree: ast.AST) -> set[int]:
    """Imports whose failure the code expects, in `try: ... except ImportError`."""
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any("ImportError" in ast.unparse(h.type or h) for h in node.handlers)
        for statement in node.body
        for inner in ast.walk(statement)
    }


def names_of_vllm(tree: ast.AST) -> Iterator[tuple[str, str | None, int]]:
    """Module, name in it or None, and line of each import; attributes of imported modules too."""
    expected, modules = tolerated(tree), {}
    for node in ast.walk(tree):
        if id(node) in expected:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node.lineno) for alias in node.names if is_vllm(alias.name))
        elif isinstance(node, ast.ImportFrom) and not node.level and is_vllm(node.module):
            module = str(node.module)
            for alias in node.names:
                yield module, alias.name, node.lineno
                modules[alias.asname or alias.name] = f"{module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and isinstance(node.ctx, ast.Load):
            module = modules.get(node.value.id, "")
            if module and not module.endswith(".envs") and isinstance(resolved(module), ModuleType):
                yield module, node.attr, node.lineno


def resolved(dotted: str) -> object | None:
    """The module of a dotted name, None where it is none."""
    try:
        return importlib.import_module(dotted) if importlib.util.find_spec(dotted) else None
    except (ImportError, ModuleNotFoundError):
        return None


def problem(module: str, name: str | None) -> str | None:
    """What is wrong with an import in this interpreter."""
    if module in GPU_ONLY:
        return None if importlib.util.find_spec(module) else f"no module {module}"
    try:
        target = importlib.import_module(module)
        if name and not hasattr(target, name):
            importlib.import_module(f"{module}.{name}")
    except (ImportError, AttributeError) as error:
        return f"{module}.{name}: {error}"
    return None


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_import_resolves(folder: str) -> None:
    problems, count = [], 0
    for path in (path for path in FILES if path.relative_to(ROOT).parts[0] == folder):
        for module, name, line in names_of_vllm(ast.parse(path.read_text())):
            count += 1
            if found := problem(module, name):
                problems.append(f"{path.relative_to(ROOT)}:{line}: {found}")
    assert not problems, "\n".join(problems)
    assert count or folder == "scripts"


@pytest.mark.parametrize(
    "code",
    [
        "from vllm.multimodal.utils import no_such_name",
        "def later():\n    import vllm.no_such_module",
        "from vllm.multimodal import utils\nutils.no_such_name()",
    ],
)
def test_a_missing_name_would_be_noticed(code: str) -> None:
    assert [found for module, name, _ in names_of_vllm(ast.parse(code)) if (found := problem(module, name))]


def test_an_import_that_may_fail_is_left_to_its_code() -> None:
    code = "try:\n    from vllm.nowhere import name\nexcept ImportError:\n    name = None"
    assert not list(names_of_vllm(ast.parse(code)))
