"""The Dockerfiles, as far as they can be checked without an engine: linted, and true to the rest of the project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points, metadata, requires
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement

from .conftest import DEPLOY, ROOT

FILES = ["Dockerfile.cpu", "Dockerfile.cuda"]


def instructions(name: str) -> list[dict[str, Any]]:
    parser = DockerfileParser(fileobj=BytesIO((DEPLOY / name).read_bytes()), env_replace=False)
    found: list[dict[str, Any]] = parser.structure
    return [one for one in found if one["instruction"] != "COMMENT"]


def last(name: str, instruction: str) -> str:
    value: str = [one["value"] for one in instructions(name) if one["instruction"] == instruction][-1]
    return value


@pytest.mark.parametrize("name", FILES)
def test_hadolint(name: str) -> None:
    hadolint = shutil.which("hadolint") or str(Path(sys.executable).parent / "hadolint")
    command = [hadolint, "--failure-threshold", "info", DEPLOY / name]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_exists_and_reaches_the_builder(name: str) -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [one["value"].split() for one in instructions(name) if one["instruction"] == "COPY"]
    sources = [source for words in copies if not words[0].startswith("--from") for source in words[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == one or source.startswith(f"{one}/") for one in sent), f"{source} is in .dockerignore"


@pytest.mark.parametrize("name", FILES)
def test_several_stages_and_no_root(name: str) -> None:
    stages = [one["value"] for one in instructions(name) if one["instruction"] == "FROM"]
    assert len(stages) == 2
    assert all(":" in stage for stage in stages), "base images are pinned by a tag"
    assert last(name, "USER") == "10001:10001"


@pytest.mark.parametrize("name", FILES)
def test_no_secrets(name: str) -> None:
    for one in instructions(name):
        if one["instruction"] in ("ENV", "ARG"):
            assert not re.search("KEY|TOKEN|SECRET|PASSWORD", one["value"]), one["value"]


@pytest.mark.parametrize("name", FILES)
def test_entry_point_and_probe_are_the_servers(name: str) -> None:
    from server.endpoint import router

    assert json.loads(last(name, "ENTRYPOINT"))[0] in {one.name for one in entry_points(group="console_scripts")}
    (path,) = re.findall(r"http://127\.0\.0\.1:8000([^']+)", last(name, "HEALTHCHECK"))
    assert path in {route.path for route in router.routes}
    assert last(name, "EXPOSE") == "8000"
    assert last(name, "STOPSIGNAL") == "SIGTERM"


def test_versions_are_the_projects() -> None:
    pinned = next(one["value"] for one in instructions("Dockerfile.cuda") if one["instruction"] == "ARG")
    wanted = [one.replace(" ", "") for one in requires("vllm-prune") or () if 'extra=="cuda"' in one.replace(" ", "")]
    (supported,) = (Requirement(one).specifier for one in wanted)
    assert pinned.split("=")[1] in supported
    assert "0.1" not in supported
    low, high = sorted(int(minor) for minor in re.findall(r"3\.(\d+)", metadata("vllm-prune")["Requires-Python"]))
    for name in FILES:
        text = (DEPLOY / name).read_text()
        versions = re.findall(r"(?:ARG PYTHON=|FROM python:)3\.(\d+)", text)
        assert versions
        assert all(low <= int(version) < high for version in versions)


def test_the_cpu_image_sets_up_as_make_does() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "scripts" / "setup_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (call,) = re.findall(r"python scripts/setup_env\.py ([^&\\\n]+)", (DEPLOY / "Dockerfile.cpu").read_text())
    options = module.parse(call.split())
    assert (str(options.venv), options.device, options.extra) == ("/opt/venv", "cpu", [])
    assert "scripts/setup_env.py" in (ROOT / "Makefile").read_text()
    needed = {*module.INPUTS, "setup.py", "README.md", "LICENSE"}
    copied = [one["value"] for one in instructions("Dockerfile.cpu") if one["instruction"] == "COPY"]
    words = {word for value in copied for word in value.split()}
    assert all(any(one == word or one.startswith(f"{word}/") for word in words) for one in needed)


def test_the_demo_model_is_known_as_such() -> None:
    target = next(one["value"].split()[-1] for one in instructions("Dockerfile.cpu") if "demo_model" in one["value"])
    assert json.loads(last("Dockerfile.cpu", "CMD"))[0] == target
    # `vllm_prune.cli.serve.is_demo` goes by the last two parts of the path.
    assert Path(target).parts[-2:] == ("demo_model", "checkpoint")
