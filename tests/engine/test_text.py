"""Strategies that read the question get its embeddings, and what they keep is cached for that question alone; the
projector's sensitivity is that of transformers' own projector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vllm_prune.budget.errors import BudgetError
from vllm_prune.visual.strategies.base import Context
from vllm_prune.visual.strategies.cdpruner import CdPruner
from vllm_prune.visual.strategies.zoo import Zoo
from vllm_prune.visual.tower.projector import sensitivity

from . import media
from .checkpoints import CELL
from .engines import EnginePool, generate, model_of
from .media import Visual
from .oracle import Oracle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ASKING: Visual = {"strategy": "cdpruner", "keep": 0.4}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Texts that the strategy was given, one per choice."""
    texts: list[torch.Tensor] = []
    select = CdPruner.select

    def noted(self: Any, tokens: torch.Tensor, grid: Any, count: int, context: Context, per_frame: Any = None) -> Any:
        assert context.text is not None
        texts.append(context.text)
        return select(self, tokens, grid, count, context, per_frame)

    monkeypatch.setattr(CdPruner, "select", noted)
    return texts


def test_a_question_is_read_and_is_part_of_the_key(family: str, engines: EnginePool, seen: list[torch.Tensor]) -> None:
    llm, cell = engines.get(family), CELL[family]
    picture, film = media.image(5 * cell, 6 * cell, 1), media.video(6, 3 * cell, 4 * cell)
    questions = ["what is it?", "where is the red one?", "what is it?"]
    lengths = [
        len(generate(llm, [media.ask(picture, film, visual=ASKING, question=question)], 1)[0].prompt_token_ids)
        for question in questions
    ]
    # Both items once for each question; the third request is answered from the cache.
    assert len(seen) == 4
    assert lengths[0] == lengths[2]
    table = model_of(llm).get_language_model().embed_input_ids
    words = llm.get_tokenizer()
    for question, text in zip(questions, seen[::2], strict=False):
        # `media.ask` writes a word in front of each item, in the same message.
        ids = words.encode(f"m0m1{question}", add_special_tokens=False)
        assert torch.equal(text, table(torch.tensor(ids)))
    assert not torch.equal(seen[0], seen[2][: len(seen[0])])


def test_a_budget_that_reads_nothing_ignores_the_question(family: str, engines: EnginePool) -> None:
    llm, picture = engines.get(family), media.image(5 * CELL[family], 6 * CELL[family], 1)
    keys = []
    for strategy in ("divprune", "cdpruner"):
        for question in ("what is it?", "where is it?"):
            request = media.ask(picture, visual={"strategy": strategy, "keep": 0.4}, question=question).for_vllm()
            prompt = llm._preprocess_cmpl([request])[0]
            keys.append(prompt["mm_hashes"]["image"][0])
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_message_without_text_is_refused(family: str, engines: EnginePool) -> None:
    llm, picture = engines.get(family), media.image(5 * CELL[family], 6 * CELL[family], 1)
    prompt = f"<|im_start|>user\n{media.IMAGE}<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(BudgetError, match="has no text"):
        generate(llm, [media.with_media(prompt, picture, visual=ASKING)], 1)


def test_sensitivity_is_that_of_transformers_projector(
    family: str, engines: EnginePool, oracles: Callable[[str], Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of several sizes in one batch, one of them wider than the tower's windows, and a video."""
    llm, oracle, cell = engines.get(family), oracles(family), CELL[family]
    seen: list[torch.Tensor] = []
    select = Zoo.select

    def noted(self: Any, tokens: torch.Tensor, grid: Any, count: int, context: Context, per_frame: Any = None) -> Any:
        assert context.sensitivity is not None
        seen.append(context.sensitivity.cpu())
        return select(self, tokens, grid, count, context, per_frame)

    monkeypatch.setattr(Zoo, "select", noted)
    shown = media.image(9 * cell, 6 * cell, 1), media.image(3 * cell, 4 * cell, 2)
    request = media.ask(*shown, media.video(6, 3 * cell, 5 * cell, seed=3), visual={"strategy": "zoo", "keep": 0.4})
    generate(llm, [request], 1)
    inputs, _, _ = oracle.expand(request)
    expected = [
        *_sensitivity(oracle, inputs.pixel_values, inputs.image_grid_thw),
        *_sensitivity(oracle, inputs.pixel_values_videos, inputs.video_grid_thw),
    ]
    assert [len(values) for values in seen] == [54, 12, 45]
    for got, want in zip(seen, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3)
    assert "forward" not in vars(model_of(llm).visual.merger)


def _sensitivity(oracle: Oracle, pixels: torch.Tensor, thw: torch.Tensor) -> list[torch.Tensor]:
    """Of each item, [M] in raster order, by transformers' merger; cells are matched by its outputs."""
    visual, heard = oracle.hf.model.visual, list[torch.Tensor]()
    handle = visual.merger.register_forward_pre_hook(lambda module, args: heard.append(args[0].detach()))
    try:
        with torch.no_grad():
            output = visual(pixels.float(), grid_thw=thw)
            raster = getattr(output, "pooler_output", output)
            raster = torch.cat(list(raster)) if isinstance(raster, (list, tuple)) else raster
            values = sensitivity(visual.merger.forward, heard[0], 4)
            # The tower may work in another order: its merger's output says which cell is which.
            order = torch.cdist(raster, visual.merger.forward(heard[0])).argmin(1)
    finally:
        handle.remove()
    assert sorted(order.tolist()) == list(range(len(values)))
    return list(values[order].split((thw.prod(-1) // 4).tolist()))
