"""The command line, run as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vllm_prune.catalogue import KV, VISUAL, entries, markdown
from vllm_prune.cli import doctor
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
    text = " ".join(found.stdout.replace("│", " ").split())
    assert TESTED[minor_of(vllm_version())].split(",")[0] in text
    assert "functions that are built on are as they were reviewed" in text


@pytest.mark.slow
def test_doctor_names_every_problem(tmp_path: Path) -> None:
    config = tmp_path / "prune.yaml"
    config.write_text(f"stts: {{scorer: {tmp_path}/none.safetensors}}\nweights: {{qtsplus: {tmp_path}/absent}}\n")
    variables = {
        "VLLM_PLUGINS": "something_else",
        "VLLM_USE_RUST_FRONTEND": "1",
        "VLLM_MEDIA_CONNECTOR": "http",
        "VLLM_RUST_FRONTEND_PATH": "/bin/true",
        "VLLM_PRUNE_CONFIG": str(config),
    }
    found = run("doctor", **variables)
    text = " ".join(found.stdout.replace("│", " ").split())
    assert found.returncode == 1
    assert "PROBLEM" in text
    assert "VLLM_PLUGINS" in text
    assert "would ignore budgets" in text
    assert "URLs and decoding are not guarded" in text
    assert "none.safetensorscannotberead" in text.replace(" ", "")
    assert "absent,whichdoesnotexist" in text.replace(" ", "")
    assert "weights:{cacovid:PATH}" in text.replace(" ", "")


def test_doctor_fails_on_a_broken_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "prune.yaml"
    config.write_text("limits:\n  most: 3\n")
    monkeypatch.setenv("VLLM_PRUNE_CONFIG", str(config))
    found = doctor._configuration()
    assert not found.good
    assert "prune.yaml:2" in found.detail
    config.write_text("limits:\n  min_keep: 0.1\n")
    assert doctor._configuration().good
