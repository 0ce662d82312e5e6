"""Visual budgets beside a multi-token prediction head (MTP): answers are those of transformers, as without one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from vllm_prune.visual.models import derived, drafter

from .engines import EnginePool, answer_of, generate, runner_of
from .families.rows import ROWS, for_engine, requests
from .oracle import compare
from .test_families import oracle_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.runner("v1", "the draft model is looked up in V1's runner"),
]

EVERYTHING = os.environ.get("FAMILIES") == "full"
NAMES = [name for name, row in ROWS.items() if row.drafter and (EVERYTHING or not row.slow)]
STEPS, CASES = 12, ("i", "iv")
SPECULATION = {"method": "mtp", "num_speculative_tokens": 2}


@pytest.mark.parametrize("name", NAMES)
def test_drafts_on_pruned_media(
    name: str, engines: EnginePool, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cold and with warm caches; the drafter is given rows with position columns, and some of its drafts are taken."""
    row, widths, taken = ROWS[name], set(), []
    embed = drafter.PrunedDrafter.embed_input_ids

    def watch(self: Any, input_ids: Tensor, multimodal_embeddings: Any = None, **more: Any) -> Tensor:
        widths.update(rows.shape[-1] for rows in multimodal_embeddings or ())
        return embed(self, input_ids, multimodal_embeddings, **more)

    monkeypatch.setattr(drafter.PrunedDrafter, "embed_input_ids", watch)
    asked = {key: one for key, one in requests(name).items() if key.split(",")[0] in CASES}
    oracle = oracle_of(name, checkpoints[name])
    in_our_pads = getattr(oracle, "in_our_pads", lambda answer: answer)
    expected = {key: oracle.answer(one, STEPS) for key, one in asked.items()}
    llm = engines.get(
        for_engine(name),
        max_num_batched_tokens=row.chunk,
        limit_mm_per_prompt=row.limits,
        speculative_config=SPECULATION,
        **row.options,
    )
    assert type(runner_of(llm).drafter.model).__module__ == derived.__name__
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    count = scheduler.make_spec_decoding_stats

    def counted(*args: Any, **kwargs: Any) -> Any:
        taken.append(kwargs["num_accepted_tokens"])
        return count(*args, **kwargs)

    monkeypatch.setattr(scheduler, "make_spec_decoding_stats", counted)
    for _ in range(2):
        for key, output in zip(asked, generate(llm, list(asked.values()), STEPS), strict=True):
            compare(in_our_pads(answer_of(output)), expected[key])
    width = derived_width(llm)
    assert widths == {width, width + 6}
    assert sum(taken) > 0


def derived_width(llm: Any) -> int:
    """Columns of the language model's embeddings."""
    return int(llm.llm_engine.vllm_config.model_config.get_inputs_embeds_size())
