from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vllm_prune.catalogue import KV, SHARED_MODULES, VISUAL, Catalogue
from vllm_prune.visual.strategies.base import Strategy


@pytest.mark.parametrize("catalogue", [VISUAL, KV], ids=lambda one: one.part)
def test_every_file_of_the_folder_is_a_strategy_of_its_name(catalogue: Catalogue) -> None:
    folder = Path(__file__).parents[1] / "vllm_prune" / catalogue.part / "strategies"
    files = {path.stem for path in folder.glob("[!_]*.py")} - SHARED_MODULES
    assert set(catalogue.names()) == files
    for name in catalogue.names():
        assert catalogue.strategy_class(name).name == name


def test_a_file_without_a_strategy_of_its_name_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strays").mkdir()
    (tmp_path / "strays" / "uniform.py").write_text("class Other:\n    name = 'other'\n")
    monkeypatch.syspath_prepend(tmp_path)
    strays = Catalogue("visual")
    strays._package = "strays"
    assert strays.names() == ("uniform",)
    with pytest.raises(TypeError, match="0 strategies with name = 'uniform'"):
        strays.strategy_class("uniform")


def test_a_strategy_from_outside_has_a_name_of_its_own() -> None:
    class Other(Strategy):
        name = "uniform"

    class Mine(Strategy):
        name = "mine"

    with pytest.raises(ValueError, match="taken"), VISUAL.including(Other):
        pass
    with VISUAL.including(Mine):
        assert isinstance(VISUAL.create("mine"), Mine)
    assert "mine" not in VISUAL.names()
    with pytest.raises(KeyError):
        VISUAL.create("mine")


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        KV.create("no_such_strategy")


def test_names_and_budgets_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import vllm_prune.budget.canonical, vllm_prune.budget.allocate, vllm_prune.budget.kv, vllm_prune.config.load\n"
        "from vllm_prune.catalogue import VISUAL; print(*VISUAL.names())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == list(VISUAL.names())
