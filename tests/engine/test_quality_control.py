"""The regression test of the default strategy can fail: it does when the kept tokens are turned upside down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.quality import beats_random
from benchmarks.tasks import sample
from vllm_prune.budget.fields import DEFAULT_STRATEGY
from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.visual.strategies.base import Context, Strategy

from .engines import EnginePool

SAMPLES = 200


class Inverted(Strategy):
    """Keeps what the default image strategy would drop first."""

    name = "test_inverted"
    paper = "ours"
    summary = "the default strategy upside down"

    def select_span(self, tokens: Tensor, grid: Grid, count: int, context: Context) -> Tensor:
        """The complement of the default's choice."""
        kept = VISUAL.create(DEFAULT_STRATEGY["image"]).select(tokens, grid, grid.tokens - count, context)
        dropped = torch.ones(grid.tokens, dtype=torch.bool)
        dropped[kept] = False
        return dropped.nonzero().squeeze(1)


@pytest.fixture
def inverted() -> Iterator[str]:
    """The strategy, registered for one test."""
    with VISUAL.including(Inverted):
        yield Inverted.name


def answers(llm: Any, visual: dict[str, Any]) -> Sequence[bool]:
    """Right or wrong per held-out screen under a budget."""
    from vllm import SamplingParams

    asked = [sample("test", i) for i in range(SAMPLES)]
    outputs = llm.chat(
        [one.to_chat() for one in asked], SamplingParams(temperature=0, max_tokens=6), use_tqdm=False,
        mm_processor_kwargs={"vllm_prune": visual},
    )  # fmt: skip
    return [out.outputs[0].text.strip() == one.answer for out, one in zip(outputs, asked, strict=True)]


def test_an_inverted_selection_does_not_pass(engines: EnginePool, inverted: str) -> None:
    llm = engines.get("demo")
    names = (DEFAULT_STRATEGY["image"], "random", inverted)
    default, random, upside_down = (answers(llm, {"keep": 0.5, "strategy": name}) for name in names)
    assert beats_random(default, random)
    assert not beats_random(upside_down, random)
    assert beats_random(random, upside_down)
