"""Families with attention in both directions: vLLM takes the ranges from the placeholders that a budget has shortened.

No engine runs here: vLLM's CPU build has no such attention. The adapter's processor expands a prompt, and vLLM's own
function is asked for the ranges of it.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from vllm.config import ModelConfig
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.multimodal.processing import InputProcessingContext
from vllm.multimodal.processing.context import TimingContext
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.tokenizers import cached_tokenizer_from_config

from vllm_prune.budget.canonical import KEY, canonical
from vllm_prune.budget.fields import parse_visual
from vllm_prune.visual.models import derived
from vllm_prune.visual.models.table import FAMILIES

from ..vllm_names import prefix_ranges
from .families.rows import BUDGETS, ROWS, ask, cases, for_engine
from .media import Request

pytestmark = pytest.mark.slow

NAMES = ("gemma3", "gemma4")


@pytest.fixture(scope="module", params=NAMES)
def served(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> tuple[str, Any]:
    """Name of the row, and the adapter's processor."""
    path = checkpoints[for_engine(request.param)]
    config = ModelConfig(str(path), dtype="float32", limit_mm_per_prompt=ROWS[request.param].limits)
    [architecture] = json.loads((path / "config.json").read_text())["architectures"]
    assert FAMILIES[architecture].two_way
    context = InputProcessingContext(config, cached_tokenizer_from_config(config))
    return request.param, getattr(derived, architecture)._processor_factory.build_processor(context)


def expand(processor: Any, request: Request) -> tuple[list[int], list[Any]]:
    """Prompt ids under a budget, and the items with their places."""
    tokenizer = processor.info.get_tokenizer()
    data = {"image": list(request.images), "video": list(request.videos)}
    items = processor.info.parse_mm_data({key: each for key, each in data.items() if each})
    budget = {} if request.visual is None else {KEY: canonical(parse_visual(request.visual)).wire()}
    ids = tokenizer.encode(request.prompt, add_special_tokens=False)
    made = processor.apply(ProcessorInputs(ids, items, hf_processor_mm_kwargs=budget), TimingContext(enabled=False))
    places = [(modality, each) for modality, ranges in made["mm_placeholders"].items() for each in ranges]
    features = [MultiModalFeatureSpec(None, modality, "item", placed) for modality, placed in places]
    return made["prompt_token_ids"], sorted(features, key=lambda one: one.mm_position.offset)


@pytest.mark.parametrize("budget", ["none", "half", "few", "shared"])
def test_each_picture_or_frame_is_one_range(served: tuple[str, Any], budget: str) -> None:
    """Kept visual tokens between two pieces of text see each other, and nothing else is in a range."""
    name, processor = served
    row = ROWS[name]
    pads = processor.info.get_tokenizer().convert_tokens_to_ids(list(row.pads))
    for items in cases(row).values():
        whole, _ = expand(processor, ask(row, items, None))
        ids, features = expand(processor, ask(row, items, BUDGETS[budget]))
        runs, at = [], 0
        for is_pad, run in groupby(token in pads for token in ids):
            length = len(list(run))
            if is_pad:
                runs.append((at, at + length - 1))
            at += length
        assert prefix_ranges(features) == runs
        assert (sum(token in pads for token in ids) < sum(token in pads for token in whole)) == (budget != "none")
