"""Pruning from pixels in the front end, where earlier screenshots of the request change the choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.visual.frontend.frame_split import frame_counts
from vllm_prune.visual.item_plan import ItemPlan, decode
from vllm_prune.visual.strategies.base import Cells, PixelStrategy
from vllm_prune.visual.strategies.maths import cells_of

from . import media
from .checkpoints import CELL
from .engines import EnginePool, answer_of, generate, model_of
from .matrix import STEPS
from .oracle import Item, Oracle, compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BUDGET: dict[str, Any] = {"strategy": "gui_dedup", "keep": 0.5}
CHANGED = (8, 9, 14, 15)
"""Cells of a 4 x 6 grid that differ between the two screenshots."""


class PixelOracle(Oracle):
    """Lets a pixel strategy choose from the raw bytes."""

    def choose(
        self, item: Item, name: str, count: int, options: dict[str, Any] | None, earlier: Sequence[Item]
    ) -> Tensor:
        strategy = VISUAL.create(name, options)
        assert isinstance(strategy, PixelStrategy)
        per_frame = None
        if self.qwen3 and item.modality == "video":
            per_frame = frame_counts(count, item.grid, item.patches, strategy.frame_split)
        return strategy.select_cells(_cells(item), item.grid, count, [_cells(before) for before in earlier], per_frame)


def _cells(item: Item) -> Cells:
    # Undo the normalisation by mean = std = 0.5.
    raw = (item.patches * 127.5 + 127.5).round().to(torch.uint8)
    cells = cells_of(raw.reshape(item.grid.tokens, -1), 4, 3)
    return Cells(cells.digest, cells.texture / 255)


@pytest.fixture(scope="module")
def oracle(family: str, checkpoints: dict[str, Path]) -> PixelOracle:
    return PixelOracle(checkpoints[family])


def screens(family: str) -> tuple[Image.Image, Image.Image]:
    """A screenshot, and the next one in which a window of 2 x 2 cells has appeared."""
    cell = CELL[family]
    before = media.picture(4 * cell, 6 * cell, 1)
    after = before.copy()
    # Fainter than everything else, so that it is chosen for being new and for nothing else.
    noise = np.random.default_rng(0).integers(100, 102, (2 * cell, 2 * cell, 3), dtype=np.uint8)
    after[cell : 3 * cell, 2 * cell : 4 * cell] = noise
    return Image.fromarray(before), Image.fromarray(after)


@pytest.fixture
def plans(family: str, engines: EnginePool, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[ItemPlan | None]]:
    """Gives the plans of all images that reached the model since it was last called."""
    model = model_of(engines.get(family))
    seen: list[ItemPlan | None] = []
    original = model.embed_multimodal

    def listen(**kwargs: Any) -> Any:
        # A tensor where all rows are of one length, else a list.
        seen.extend(decode(row) for row in kwargs.get("image_prune", ()))
        return original(**kwargs)

    monkeypatch.setattr(model, "embed_multimodal", listen)

    def take() -> list[ItemPlan | None]:
        taken = seen.copy()
        seen.clear()
        return taken

    return take


def kept(plan: ItemPlan | None) -> tuple[int, ...]:
    assert plan is not None
    assert plan.indices is not None
    return plan.indices


def test_new_content_goes_first(family: str, engines: EnginePool, oracle: PixelOracle, plans: Any) -> None:
    before, after = screens(family)
    request = media.ask(before, after, before, visual=BUDGET)
    answer = answer_of(generate(engines.get(family), [request], STEPS)[0])
    compare(answer, oracle.answer(request, STEPS))
    _, second, third = (kept(plan) for plan in plans())
    assert set(CHANGED) <= set(second)
    alone = media.ask(after, visual=BUDGET)
    compare(answer_of(generate(engines.get(family), [alone], STEPS)[0]), oracle.answer(alone, STEPS))
    assert not set(CHANGED) <= set(kept(plans()[0]))
    assert len(second) == len(third) == 12


def test_caches_answer_the_same(family: str, engines: EnginePool, oracle: PixelOracle, plans: Any) -> None:
    before, after = screens(family)
    requests = [media.ask(*shown, visual=BUDGET) for shown in ((before, after), (after, before), (before, before))]
    expected = [oracle.answer(request, STEPS) for request in requests]
    llm = engines.get(family)
    for cached in (False, True):
        outputs = [generate(llm, [request], STEPS)[0] for request in requests]
        for output, want in zip(outputs, expected, strict=True):
            compare(answer_of(output), want)
            assert not cached or output.num_cached_tokens >= 32
        # The item that was sent first has the same neighbours before it in two of the requests: none.
        assert len(plans()) == (0 if cached else 5)


def test_evicted_earlier_item_gives_the_same_plan(
    family: str, engines: EnginePool, oracle: PixelOracle, plans: Any
) -> None:
    before, after = screens(family)
    request = media.ask(before, after, visual=BUDGET)
    compare(answer_of(generate(engines.get(family), [request], STEPS)[0]), oracle.answer(request, STEPS))
    fresh = plans()
    llm = engines.get(family)
    generate(llm, [media.ask(before, visual=BUDGET)], 1)
    processor = llm.llm_engine.renderer.mm_processor
    assert processor._item_cache._cells
    # The processor cache still has the first image, so only the second one is processed.
    processor._item_cache._cells.clear()
    compare(answer_of(generate(llm, [request], STEPS)[0]), oracle.answer(request, STEPS))
    assert [kept(plan) for plan in plans()] == [kept(plan) for plan in fresh]


def test_videos(family: str, engines: EnginePool, oracle: PixelOracle) -> None:
    cell = CELL[family]
    videos = [media.video(8, 4 * cell, 5 * cell, seed=5), media.video(7, 3 * cell, 4 * cell, 24, 20, 6)]
    for keep in (0.4, 0.02):
        request = media.ask(*videos, screens(family)[0], visual={**BUDGET, "keep": keep})
        compare(answer_of(generate(engines.get(family), [request], STEPS)[0]), oracle.answer(request, STEPS))
