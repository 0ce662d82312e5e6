"""Molmo2: budgets for videos against plain torch, with a causal language model; and vLLM's bidirectional ranges.

The CPU backend has no prefix attention, so vLLM is told here that the model needs none. All else is as it is served.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_prune.budget import BudgetError

from .engines import EnginePool, answer_of, generate, model_of, reset
from .media import Request, image, video
from .molmo2.checkpoint import build
from .molmo2.oracle import Oracle
from .molmo2.remote import HEIGHT, WIDTH
from .oracle import compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 4
PROMPTS = {"short": ("<|video|> which?", 3, 1), "long": ("see <|video|>", 6, 2)}
BUDGETS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "uniform": {"strategy": "uniform", "keep": 0.5},
    "evs": {"strategy": "evs", "keep": 0.3},
    "vidcom2": {"strategy": "vidcom2", "keep": 0.25},
    "mc_evs": {"strategy": "mc_evs", "max_tokens": 17},
    "a cell": {"strategy": "divprune", "max_tokens": 1},
    "gui_dedup": {"strategy": "gui_dedup", "keep": 0.5},
    "recv_attn": {"strategy": "recv_attn", "keep": 0.5},
    "tower": {"strategy": "divprune", "keep": 0.4, "options": {"where": "tower", "after": 1}},
    "tower, late": {"strategy": "divprune", "keep": 0.4, "options": {"where": "tower", "after": 3}},
    "tower, few": {"strategy": "mc_evs", "max_tokens": 4, "options": {"where": "tower", "after": 1}},
    "stts": {"strategy": "stts", "keep": 0.5},
    "stts, few": {"strategy": "stts", "keep": 0.2},
}
NAMES = [f"{prompt}, {budget}" for prompt in PROMPTS for budget in BUDGETS]


def request_of(name: str) -> Request:
    prompt, _, budget = name.partition(", ")
    text, frames, seed = PROMPTS[prompt]
    return Request(text, videos=(video(frames, HEIGHT, WIDTH, seed=seed),), visual=BUDGETS[budget])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("checkpoints") / "molmo2")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Any:
    pool = EnginePool({"molmo2": folder})
    # Prompts are cut into chunks, between and inside frames.
    yield pool.get(
        "molmo2",
        trust_remote_code=True,
        hf_overrides={"is_mm_prefix_lm": False},
        limit_mm_per_prompt={"image": 1, "video": 1},
        max_num_batched_tokens=128,
    )
    pool.close()


@pytest.fixture(scope="module")
def outputs(llm: Any) -> dict[str, list[Any]]:
    """Two rounds of all requests, batched as the engine likes; caches are warm in the second."""
    rounds = [generate(llm, [request_of(name) for name in NAMES], STEPS) for _ in range(2)]
    return {name: [found[i] for found in rounds] for i, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


@pytest.mark.parametrize("name", NAMES)
def test_answers(outputs: dict[str, list[Any]], oracle: Oracle, name: str) -> None:
    expected, counts = oracle.answer(request_of(name), STEPS)
    for output in outputs[name]:
        compare(answer_of(output), expected)
    frames, budget = PROMPTS[name.partition(", ")[0]][1], request_of(name).visual
    whole = frames * 12
    assert sum(counts) == (whole if budget is None else budget.get("max_tokens") or int(budget["keep"] * whole))
