"""The locustfile: parsed, as locust itself is not among the project's dependencies."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from vllm_prune.budget.canonical import canonical
from vllm_prune.budget.fields import parse_pruning

FILE = Path(__file__).parents[2] / "deploy" / "load" / "locustfile.py"
README = FILE.parent / "README.md"


def test_the_default_mix_is_valid() -> None:
    texts = [node.value for node in ast.walk(ast.parse(FILE.read_text())) if isinstance(node, ast.Constant)]
    (mix,) = (json.loads(text) for text in texts if isinstance(text, str) and text.startswith('{"off"'))
    assert set(mix) == {"off", "keep 0.5"}
    field = parse_pruning(mix["keep 0.5"])
    assert field.visual is not None
    assert canonical(field.visual).image is not None


def test_the_recipes_carry_valid_budgets() -> None:
    decoder, text, found = json.JSONDecoder(), README.read_text(), []
    for place in (i for i in range(len(text)) if text.startswith('"pruning": ', i)):
        found.append(decoder.raw_decode(text, place + len('"pruning": '))[0])
    assert len(found) == 3
    for pruning in found:
        field = parse_pruning(pruning)
        assert field.visual is not None
        assert canonical(field.visual).image is not None
