"""The configurations for other harnesses are valid budgets."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vllm_prune.budget.canonical import canonical, canonical_kv
from vllm_prune.budget.fields import parse_pruning
from vllm_prune.config.load import load

FOLDER = Path(__file__).parents[2] / "benchmarks" / "harnesses"


def test_presets_load_and_say_what_they_do() -> None:
    presets = load(FOLDER / "presets.yaml").presets
    for name, preset in presets.items():
        if name == "unpruned":
            assert (preset.visual, preset.kv) == (None, None)
            continue
        strategy, percent = name.removesuffix("_kv").rsplit("-", 1)
        budget = preset.visual or preset.kv
        assert budget is not None
        assert (budget.strategy, budget.keep) == (strategy.replace("random_kv", "random"), int(percent) / 100)
        # Both are given, so that no default of the server comes in.
        assert preset.model_fields_set == {"visual", "kv"}
    assert {"divprune-50", "random-50", "uniform-50", "gui_kv-20"} <= set(presets)


def test_the_commands_name_presets_that_exist() -> None:
    (named,) = re.findall(r"for preset in (.*); do", (FOLDER / "README.md").read_text())
    assert set(named.split()) <= set(load(FOLDER / "presets.yaml").presets)
    assert not any(
        part in name for part in ("o1", "o3", "o4", "gpt-5") for name in load(FOLDER / "presets.yaml").presets
    )


def test_the_vlmevalkit_configuration_carries_valid_budgets() -> None:
    models = json.loads((FOLDER / "vlmevalkit.json").read_text())["model"]
    assert set(models) == {"unpruned", "divprune-50", "random-50"}
    for name, model in models.items():
        field = parse_pruning(model["pruning"])
        if name == "unpruned":
            assert (field.visual, field.kv) == (None, None)
            continue
        assert field.visual is not None
        spec = canonical(field.visual)
        assert spec.image is not None
        assert f"{spec.image.strategy}-{spec.image.keep}" == name.replace("-50", "-0.5")
        assert field.kv is None or canonical_kv(field.kv) is None
        assert model["key"].startswith("sk-")
