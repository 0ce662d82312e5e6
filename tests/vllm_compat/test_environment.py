"""vLLM knows this project's variables, and still notices others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from vllm import envs
from vllm.platforms import current_platform

from vllm_prune.vllm_compat.environment import OURS, declare_variables

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """VLLM's table without this project's names."""
    without = {name: getter for name, getter in envs.environment_variables.items() if name not in OURS}
    monkeypatch.setattr(envs, "environment_variables", without)


@pytest.mark.parametrize("name", OURS)
def test_a_strict_start_takes_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "secret")
    with pytest.raises(ValueError, match=name):
        current_platform.validate_environ(True)
    declare_variables()
    current_platform.validate_environ(True)


def test_a_misspelt_one_is_still_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    declare_variables()
    monkeypatch.setenv("VLLM_PRUNE_CONFG", "prune.yaml")
    with pytest.raises(ValueError, match="VLLM_PRUNE_CONFG"):
        current_platform.validate_environ(True)


def test_no_value_enters_the_key_of_compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PRUNE_TENANTS", "secret")
    declare_variables()
    factors = envs.compile_factors()
    assert factors["VLLM_PRUNE_TENANTS"] is None
    assert "secret" not in map(str, factors.values())


def test_every_name_in_the_code_is_there() -> None:
    files = [path for folder in ("vllm_prune", "server") for path in (ROOT / folder).rglob("*.py")]
    assert {name for path in files for name in re.findall(r"VLLM_PRUNE_[A-Z_]*[A-Z]", path.read_text())} == {*OURS}
