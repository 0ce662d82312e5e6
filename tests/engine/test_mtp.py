"""Visual budgets beside a multi-token prediction head (MTP): answers are those of transformers, as without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from vllm_prune.visual.models import derived, drafter

from . import oracle as qwen
from .engines import EnginePool, answer_of, generate, runner_of
from .families.rows import ROWS, for_engine, requests
from .oracle import compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NAME, STEPS = "qwen3_5_mtp", 12
CASES = ("i", "iv")
SPECULATION = {"method": "mtp", "num_speculative_tokens": 2}


@pytest.fixture(scope="module")
def llm(engines: EnginePool) -> Any:
    row = ROWS[NAME]
    return engines.get(
        for_engine(NAME),
        max_num_batched_tokens=row.chunk,
        limit_mm_per_prompt=row.limits,
        speculative_config=SPECULATION,
    )


def test_drafts_on_pruned_media(llm: Any, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold and with warm caches; some drafts are taken, and the drafter is given rows with position columns."""
    widths: set[int] = set()
    embed = drafter.PrunedDrafter.embed_input_ids

    def watch(self: Any, input_ids: Tensor, multimodal_embeddings: Any = None, **more: Any) -> Tensor:
        widths.update(rows.shape[-1] for rows in multimodal_embeddings or ())
        return embed(self, input_ids, multimodal_embeddings, **more)

    monkeypatch.setattr(drafter.PrunedDrafter, "embed_input_ids", watch)
    assert type(runner_of(llm).drafter.model).__module__ == derived.__name__
    asked = {key: one for key, one in requests(NAME).items() if key.split(",")[0] in CASES}
    answers = qwen.Oracle(checkpoints[NAME])
    expected = {key: answers.answer(one, STEPS) for key, one in asked.items()}
    for _ in range(2):
        for key, output in zip(asked, generate(llm, list(asked.values()), STEPS), strict=True):
            compare(answer_of(output), expected[key])
    width = runner_of(llm).drafter.model.config.hidden_size
    assert widths == {width, width + 6}
