"""The tower runs on as many items at a time as the cap on raw patches allows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import media
from .checkpoints import CELL
from .engines import EnginePool, answer_of, generate, model_of
from .matrix import STEPS, UNIFORM
from .oracle import Oracle, compare
from .test_cache_keys import counting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def four_images(family: str) -> media.Request:
    """Images of 24, 20, 12 and 30 cells."""
    cell = CELL[family]
    sizes = [(4, 6), (5, 4), (3, 4), (5, 6)]
    images = [media.image(rows * cell, cols * cell, seed) for seed, (rows, cols) in enumerate(sizes)]
    return media.ask(*images, visual={**UNIFORM, "keep": 0.5})


@pytest.mark.parametrize(
    ("cells", "calls"),
    [(1000, [4]), (86, [4]), (85, [3, 1]), (56, [3, 1]), (44, [2, 2]), (40, [1, 2, 1]), (1, [1, 1, 1, 1])],
)
def test_images_are_encoded_together(
    family: str,
    cells: int,
    calls: list[int],
    engines: EnginePool,
    oracles: Callable[[str], Oracle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm, request = engines.get(family), four_images(family)
    monkeypatch.setattr(model_of(llm), "_micro_batch_patches", 4 * cells)
    with counting(llm) as seen:
        answer = answer_of(generate(llm, [request], STEPS)[0])
    assert seen == calls
    compare(answer, oracles(family).answer(request, STEPS))


def test_videos_are_encoded_together(
    family: str, engines: EnginePool, oracles: Callable[[str], Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = CELL[family]
    llm = engines.get(family)
    videos = [media.video(8, 4 * cell, 5 * cell, seed=5), media.video(7, 3 * cell, 4 * cell, 24, 20, 6)]
    request = media.ask(*videos, visual={**UNIFORM, "keep": 0.2})
    for cells, calls in ((200, [2]), (100, [1, 1])):
        monkeypatch.setattr(model_of(llm), "_micro_batch_patches", 4 * cells)
        llm = engines.get(family)
        with counting(llm) as seen:
            answer = answer_of(generate(llm, [request], STEPS)[0])
        assert seen == calls
        compare(answer, oracles(family).answer(request, STEPS))


def test_pruned_and_unpruned_requests_share_a_call(
    family: str, engines: EnginePool, oracles: Callable[[str], Oracle]
) -> None:
    cell, llm = CELL[family], engines.get(family)
    requests = [
        media.ask(media.image(4 * cell, 6 * cell, seed), visual=visual)
        for seed, visual in enumerate([None, {**UNIFORM, "keep": 0.5}, None, {**UNIFORM, "keep": 0.1}])
    ]
    with counting(llm) as seen:
        outputs = generate(llm, requests, STEPS)
    assert seen == [4]
    for request, output in zip(requests, outputs, strict=True):
        compare(answer_of(output), oracles(family).answer(request, STEPS))
