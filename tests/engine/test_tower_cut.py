"""Cutting inside the tower answers as transformers does with the cut cells hidden from every later block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_prune.visual.tower.cut import Cut

from . import media
from .checkpoints import CELL
from .cutting import CutOracle
from .engines import EnginePool, answer_of, compare_all, generate, model_of
from .matrix import STEPS
from .media import Request, Visual
from .oracle import Oracle, compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MOST_AFTER = {"qwen2_5_vl": 2, "qwen3_vl": 3}


def inside(after: int, strategy: str = "divprune", keep: float = 0.4) -> dict[str, Any]:
    return {"strategy": strategy, "keep": keep, "options": {"where": "tower", "after": after}}


def requests(family: str) -> dict[str, Request]:
    """Images of several windows, odd sizes, videos, and mixes, cut after every block and by several strategies."""
    cell, last = CELL[family], MOST_AFTER[family]
    a, b = media.image(6 * cell, 9 * cell, 1), media.image(5 * cell - 9, 4 * cell + 3, 2)
    v, u = media.video(8, 4 * cell, 5 * cell, seed=5), media.video(7, 3 * cell, 4 * cell, 24, 20, 6)
    shown = {"ii": (a, b), "v": (v,), "iv": (a, u)}
    asked = {
        f"{after} blocks, {name}": media.ask(*items, visual=inside(after))
        for after in range(last + 1)
        for name, items in shown.items()
    }
    return asked | {
        "one cell": media.ask(a, u, visual=inside(1, keep=0.01)),
        "uniform": media.ask(b, v, visual=inside(0, "uniform", 0.3)),
        "by novelty": media.ask(v, visual=inside(1, "mc_evs", 0.3)),
        "shared": media.ask(a, b, v, visual={**inside(1), "keep": None, "max_tokens": 40}),
    }


@pytest.fixture(scope="module")
def cut_oracles(checkpoints: dict[str, Path]) -> Callable[[str], CutOracle]:
    loaded: dict[str, CutOracle] = {}

    def oracle(family: str) -> CutOracle:
        if family not in loaded:
            loaded[family] = CutOracle(checkpoints[family])
        return loaded[family]

    return oracle


def test_the_rest_of_the_tower_sees_survivors_only(
    family: str, engines: EnginePool, cut_oracles: Callable[[str], CutOracle]
) -> None:
    oracle, llm = cut_oracles(family), engines.get(family, max_num_batched_tokens=96)
    asked = requests(family)
    outputs = generate(llm, list(asked.values()), STEPS)
    again = generate(llm, list(asked.values()), STEPS)
    compare_all(asked, outputs, again, lambda request: oracle.answer(request, STEPS))


def test_cuts_and_whole_items_share_a_batch(
    family: str,
    engines: EnginePool,
    oracles: Callable[[str], Oracle],
    cut_oracles: Callable[[str], CutOracle],
) -> None:
    cell, llm = CELL[family], engines.get(family)
    plain: list[Visual] = [None, {"strategy": "divprune", "keep": 0.4}]
    budgets: list[Visual] = [inside(1), plain[0], inside(2), plain[1], inside(1, "uniform")]
    asked = [media.ask(media.image(6 * cell, 7 * cell, n), visual=budget) for n, budget in enumerate(budgets)]
    for request, output in zip(asked, generate(llm, asked, STEPS), strict=True):
        oracle = oracles(family) if request.visual in plain else cut_oracles(family)
        compare(answer_of(output), oracle.answer(request, STEPS))


def test_another_depth_is_another_answer(family: str, engines: EnginePool) -> None:
    """A control: the comparisons above would notice a cut in the wrong place, and caches keep them apart."""
    cell, llm = CELL[family], engines.get(family)
    picture = media.image(6 * cell, 9 * cell, 1)
    places: list[Visual] = [inside(0, "uniform"), inside(2, "uniform"), {"strategy": "uniform", "keep": 0.4}]
    outputs = [generate(llm, [media.ask(picture, visual=place)], STEPS)[0] for place in places]
    logprobs = [answer_of(output).logprobs for output in outputs]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert max(abs(a - b) for a, b in zip(logprobs[one], logprobs[other], strict=True)) > 1e-3


def test_later_blocks_work_on_survivors(family: str, engines: EnginePool) -> None:
    cell, llm = CELL[family], engines.get(family)
    rows: list[int] = []
    blocks = model_of(llm).visual.blocks

    def count(_: Any, args: Any, kwargs: Any) -> None:
        rows.append(len(args[0] if args else kwargs["x"]))

    handles = [block.attn.register_forward_pre_hook(count, with_kwargs=True) for block in blocks]
    try:
        generate(llm, [media.ask(media.image(6 * cell, 9 * cell, 77), visual=inside(1))], 1)
    finally:
        for handle in handles:
            handle.remove()
    assert rows == [4 * 54] + [4 * int(0.4 * 54)] * (len(blocks) - 1)


def test_keeping_everything_is_the_whole_tower(family: str, engines: EnginePool) -> None:
    """With all cells kept the cut path gives the bits of the plain one."""
    cell = CELL[family]
    model = model_of(engines.get(family))
    unit, height, width = 2, 6, 9
    patch = cell // unit
    thw = torch.tensor([[1, unit * height, unit * width], [2, unit * 3, unit * 4]])
    pixels = torch.rand(int(thw.prod(-1).sum()), 3 * 2 * patch * patch).to(model.visual.device)
    with torch.inference_mode():
        from vllm.forward_context import set_forward_context

        with set_forward_context(None, engines.get(family).llm_engine.vllm_config):
            whole = model.visual(pixels, grid_thw=thw.tolist())
            every = torch.arange(len(whole), device=whole.device)
            cut = model.encode_cut(pixels, thw, Cut(1, len(whole), lambda features: every))
    assert torch.equal(whole, cut)


def test_groups_of_frames_change_nothing(family: str, engines: EnginePool) -> None:
    """Dense blocks frame by frame give the bits that they give together, images and videos alike."""
    cell, llm = CELL[family], engines.get(family, max_num_batched_tokens=96)
    model, sizes = model_of(llm), []
    thw = torch.tensor([[4, 8, 10], [1, 6, 4], [3, 6, 6]])
    patches = int(thw.prod(-1).sum())
    pixels = torch.rand(patches, 3 * 2 * (cell // 2) ** 2, generator=torch.Generator().manual_seed(1))
    pixels = pixels.to(model.visual.device)
    handle = model.visual.blocks[0].attn.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(args[0] if args else kwargs["x"])), with_kwargs=True
    )
    try:
        found = [_evenly_cut(llm, pixels, thw, least) for least in (patches, 0)]
    finally:
        handle.remove()
    # No larger than what survives, or than one frame.
    assert sizes == [patches, 80, 80, 80, 80, 96, 36]
    if torch.cuda.is_available():
        # Its matrix products add up in another order for another number of rows.
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(*found)


def _evenly_cut(llm: Any, pixels: torch.Tensor, thw: torch.Tensor, least: int) -> torch.Tensor:
    from vllm.forward_context import set_forward_context

    model, count = model_of(llm), 25
    model.least_group = least
    try:
        with torch.inference_mode(), set_forward_context(None, llm.llm_engine.vllm_config):
            chosen = torch.arange(count, device=pixels.device) * 4
            return model.encode_cut(pixels, thw, Cut(1, count, lambda features: chosen))
    finally:
        del model.least_group
