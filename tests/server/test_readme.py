"""Every example of the README runs as written; every generated part is up to date."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import PAGES, fill
from benchmarks.tasks import sample
from vllm_prune.budget.canonical import canonical, canonical_kv
from vllm_prune.budget.fields import parse_pruning
from vllm_prune.config.load import load

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_sdk_example_runs_as_written(server: Any, tmp_path: Path) -> None:
    one = sample("test", 0, "colour")
    one.image.save(tmp_path / "screen.png")
    (code,) = blocks("python")
    here = code.replace("http://127.0.0.1:8000", server.url)
    assert here != code
    found = subprocess.run([sys.executable, "-c", here], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    answer, tokens, usage = found.stdout.strip().split(" ", 2)
    _, rows, cols = one.media[0].grid
    cells = rows * cols
    assert answer
    assert f"'input_tokens': {cells}, 'kept_tokens': {cells // 2}" in usage
    assert int(tokens) > cells // 2


def test_the_json_examples_are_valid() -> None:
    usage, request = (json.loads(text) for text in blocks("json"))
    assert set(usage) == {"visual", "kv", "clamped"}
    field = parse_pruning(request["pruning"])
    assert field.visual is not None
    assert field.kv is not None
    assert canonical_kv(field.kv) is not None
    spec = canonical(field.visual)
    assert spec.image is not None
    assert (spec.image.strategy, spec.image.max_tokens, spec.video) == ("gui_dedup", 800, None)


def test_the_configuration_example_loads(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    path = tmp_path / "prune.yaml"
    path.write_text(text)
    config = load(path)
    assert set(config.presets) == {"fast", "full", "agent"}
    assert config.defaults.visual is not None


def test_generated_parts_are_current() -> None:
    for page in PAGES:
        text = page.read_text()
        assert fill(text) == text, f"{page.name} is stale; run: python -m benchmarks.report"


def test_every_link_of_the_readme_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        if not target.startswith("http"):
            assert (README.parent / target).exists(), target
