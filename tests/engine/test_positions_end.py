"""Pruned prompts that fit the context but not the rotary table."""

from __future__ import annotations

import pytest

from vllm_prune.budget.errors import BudgetError

from . import media
from .engines import EnginePool, answer_of, generate


@pytest.mark.slow
def test_positions_beyond_the_rotary_table_are_refused(engines: EnginePool) -> None:
    small = {"text_config": {"max_position_embeddings": 512}}
    llm = engines.get("qwen3_vl", max_model_len=512, hf_overrides=small)
    budget = {"max_tokens": 44, "strategy": "uniform"}
    fits = media.ask(media.video(24, 64, 320), visual=budget)
    assert len(answer_of(generate(llm, [fits], 4)[0]).tokens) == 4
    with pytest.raises(BudgetError, match="positions"):
        generate(llm, [media.ask(media.video(88, 64, 320), visual=budget)], 4)
