"""Imports go one way: a module may import its own layer and those below it; see `docs/architecture.md`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"vllm_prune": ROOT / "vllm_prune", "vllm_prune_server": ROOT / "server"}

# Highest first. The longest prefix decides, so a module can be in a lower layer than its package.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("vllm_prune.cli", "vllm_prune_server", "vllm_prune.sweep", "vllm_prune.bench"),
    ("vllm_prune.vllm_compat",),
    ("vllm_prune.support",),
    (
        "vllm_prune.visual.frontend",
        "vllm_prune.visual.models",
        "vllm_prune.visual.tower",
        "vllm_prune.visual.scorers",
        "vllm_prune.visual.item_plan",
        "vllm_prune.kv",
    ),
    ("vllm_prune.request", "vllm_prune.policy"),
    ("vllm_prune.config",),
    ("vllm_prune.budget",),
    ("vllm_prune.catalogue",),
    ("vllm_prune.visual.strategies", "vllm_prune.kv.strategies"),
    (
        "vllm_prune.grid",
        "vllm_prune.shares",
        "vllm_prune.signals",
        "vllm_prune.telemetry",
        "vllm_prune.vllm_compat.cuda_graphs",
        "vllm_prune.vllm_compat.version",
        "vllm_prune.vllm_compat.signatures",
    ),
)
# The package's own module holds the version and the entry point, which calls upwards by design.
ENTRY_POINT = "vllm_prune"


def modules() -> dict[str, Path]:
    """Every module of the project, by its dotted name."""
    result = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            result[".".join((package, *parts))] = path
    return result


MODULES = modules()


def layer_of(module: str) -> int | None:
    """Number of a module's layer, counted from the top; None for packages that hold nothing themselves."""
    matches = [
        (len(prefix), number)
        for number, layer in enumerate(LAYERS)
        for prefix in layer
        if module == prefix or module.startswith(f"{prefix}.")
    ]
    return max(matches)[1] if matches else None


def imported(module: str) -> Iterator[str]:
    """Modules of the project that a module imports, at its top or inside its functions."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            source = base if node.level else str(node.module)
            for alias in node.names:
                full = f"{source}.{alias.name}"
                if full in MODULES or source in MODULES:
                    yield full if full in MODULES else source


def violations(module: str, names: Iterator[str]) -> list[str]:
    """What is wrong with a module's imports."""
    here = layer_of(module)
    problems = []
    for name in names:
        there = layer_of(name)
        if name == ENTRY_POINT or module == ENTRY_POINT or here is None or there is None:
            continue
        if there < here:
            problems.append(f"{module} imports {name}, which is {here - there} layers above it")
    return problems


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module: str) -> None:
    assert not violations(module, imported(module))


def test_every_module_has_a_layer() -> None:
    homeless = {m for m in MODULES if layer_of(m) is None} - {ENTRY_POINT, "vllm_prune.visual"}
    assert not homeless


def test_the_plugin_never_imports_the_server() -> None:
    for module in MODULES:
        if module.startswith("vllm_prune."):
            assert not [name for name in imported(module) if name.startswith("vllm_prune_server")], module
            assert "vllm_prune_server" not in MODULES[module].read_text(), module


def test_an_upward_import_would_be_seen() -> None:
    assert violations("vllm_prune.budget.canonical", iter(["vllm_prune.kv.scheduler"]))
    assert violations("vllm_prune.telemetry.metrics", iter(["vllm_prune.request"]))
    assert "vllm_prune.visual.strategies.base" in set(imported("vllm_prune.visual.strategies.evs"))


def test_lazy_imports_by_name_go_down_too() -> None:
    """A string that names a module of ours for a later import is as good as an import."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            if name != "import_module" or not isinstance(node, ast.Call) or not node.args:
                continue
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and str(argument.value).split(".")[0] in PACKAGES:
                assert not violations(module, iter([str(argument.value)])), (module, argument.value)
