"""The command line, run as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vllm_prune.catalogue import KV, VISUAL, entries, markdown
from vllm_prune.cli.main import app
from vllm_prune.visual.models.table import FAMILIES
from vllm_prune.vllm_compat.version import TESTED, minor_of, vllm_version

from .command import run


def test_strategies_in_three_forms() -> None:
    runner = CliRunner()
    assert "divprune" in runner.invoke(app, ["strategies"]).stdout
    assert runner.invoke(app, ["strategies", "--markdown"]).stdout.strip() == markdown(VISUAL) + "\n\n" + markdown(KV)
    listed = json.loads(runner.invoke(app, ["strategies", "--json"]).stdout)
    assert listed == entries()
    assert [entry["name"] for entry in listed] == [*VISUAL.names(), *KV.names()]


@pytest.mark.slow
def test_doctor_passes_here() -> None:
    found = run("doctor")
    assert found.returncode == 0, found.stdout
    for word in (
        "vllm internals",
        *FAMILIES,
        "0.32",
        "prefix attention",
        "experimental",
        "stts/scorer.safetensors",
    ):
        assert word in found.stdout
    assert "PROBLEM" not in found.stdout


@pytest.mark.slow
def test_doctor_fails_when_the_plugin_is_left_out() -> None:
    found = run("doctor", VLLM_PLUGINS="something_else")
    assert found.returncode == 1
    assert "PROBLEM" in found.stdout
    assert "VLLM_PLUGINS" in found.stdout


@pytest.mark.slow
def test_doctor_says_how_far_the_installed_vllm_is_tested() -> None:
    found = run("doctor", VLLM_USE_RUST_FRONTEND="1", VLLM_RUST_FRONTEND_PATH="/bin/true")
    text = " ".join(found.stdout.replace("│", " ").split())
    assert TESTED[minor_of(vllm_version())].split(",")[0] in text
    assert "functions that are built on are as they were reviewed" in text
    assert found.returncode == 1
    assert "would ignore budgets" in text


@pytest.mark.slow
def test_doctor_fails_on_a_broken_configuration(tmp_path: Path) -> None:
    config = tmp_path / "prune.yaml"
    config.write_text("limits:\n  most: 3\n")
    found = run("doctor", VLLM_PRUNE_CONFIG=str(config))
    assert found.returncode == 1
    assert "prune.yaml:2" in found.stdout.replace("\n", "").replace("│", "").replace(" ", "")


@pytest.mark.slow
def test_doctor_fails_on_a_scorer_that_is_missing(tmp_path: Path) -> None:
    config = tmp_path / "prune.yaml"
    config.write_text(f"stts: {{scorer: {tmp_path}/none.safetensors}}\n")
    found = run("doctor", VLLM_PRUNE_CONFIG=str(config))
    assert found.returncode == 1
    assert "none.safetensorscannotberead" in found.stdout.replace("\n", "").replace("│", "").replace(" ", "")
