"""The demo model's scorer: the engine keeps and answers what the training code keeps and answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.stts.agreement import served, trained
from benchmarks.stts.arms import load_model
from benchmarks.stts.train import held_out
from vllm_prune.visual.scorers.stts import files
from vllm_prune.visual.scorers.stts.training import PrunedTower

from .engines import EnginePool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
KEEPS = (0.5, 0.25)


def test_engine_and_training_code_agree(engines: EnginePool, checkpoints: dict[str, Path]) -> None:
    demo = checkpoints["demo"]
    model, words = load_model(demo)
    tower = PrunedTower(model.model.visual, files.load(demo / files.PLACE))
    llm = engines.get("demo", max_logprobs=-1)
    # On some large pictures the model amplifies rounding beyond these bounds: see stts_agreement.json.
    spread, samples = set(), [one for one in held_out(4, 3) if one.task != "detail"]
    for one in samples:
        for keep in KEEPS:
            kept, logprobs = served(llm, words, one, keep)
            expected, reference = trained(model, tower, words, one, keep)
            assert torch.equal(kept, expected)
            logprobs, likely = logprobs[: len(reference)], reference > -20
            assert (logprobs - reference)[likely].abs().max() < 1e-3
            assert (logprobs.exp() - reference.exp()).abs().max() < 1e-5
            spread.add(tuple(kept.tolist()))
    assert len(spread) == len(KEEPS) * len(samples)
