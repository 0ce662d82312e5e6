"""Evicting equals masking: logits after compactions are those of transformers with the same rows taken out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import media
from .checkpoints import CELL
from .engines import EnginePool
from .eviction import EVICTING, SPECS, compare_with_masked, free_blocks
from .matrix import UNIFORM
from .oracle import Oracle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 60


def test_logits_are_those_of_the_masked_reference(
    family: str, engines: EnginePool, oracles: Callable[[str], Oracle]
) -> None:
    cell, oracle = CELL[family], oracles(family)
    pictures = [media.image(6 * cell, 7 * cell, seed) for seed in range(3)]
    clip = media.video(6, 4 * cell, 5 * cell, seed=5)
    half = {**UNIFORM, "keep": 0.5}
    requests = [
        media.ask(*pictures),
        media.ask(*pictures, visual=half),
        media.ask(pictures[0], clip),
        media.ask(clip, pictures[1], visual=half),
        media.ask(pictures[2]),
    ]
    llm = engines.get(family, max_num_batched_tokens=96, **EVICTING)
    before = free_blocks(llm)
    # Cold, then with every prompt in the prefix cache.
    for _ in range(2):
        compactions = compare_with_masked(llm, requests, SPECS, STEPS, oracle)
        for count, spec in zip(compactions, SPECS, strict=True):
            assert count == 0 if spec is None or spec.max_tokens == 4096 else count > 2
        assert free_blocks(llm) == before
