"""The kept tokens that an answer names are those that the engine placed in the prompt, with cold and warm caches.

What the engine kept is read from the embeddings themselves: every row of a pruned item carries the coordinates at which
the language model sees it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from vllm_prune.catalogue import VISUAL
from vllm_prune.policy import Decision
from vllm_prune.request import CURRENT, RequestContext
from vllm_prune.support.self_check import EXTENSION
from vllm_prune.telemetry.usage_report import visual_report
from vllm_prune.visual.item_plan import ItemPlan, decode, field_name
from vllm_prune.visual.models.positions import detach
from vllm_prune.visual.tower.kept_store import KEPT

from . import media
from .checkpoints import CELL
from .engines import EnginePool, generate, model_of, reset
from .matrix import strategy_budget
from .media import Request, Visual

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BUDGETS: dict[str, Visual] = {
    "pixels": {"strategy": "gui_dedup", "keep": 0.4},
    "behind the tower": {"strategy": "divprune", "keep": 0.4},
    "attention in the tower": {"strategy": "recv_attn", "keep": 0.4},
    "question": {"strategy": "flashvlm", "keep": 0.4},
    "cut in the tower": {"strategy": "uniform", "keep": 0.4, "options": {"where": "tower", "after": 1}},
    "cut by features": {"strategy": "divprune", "keep": 0.4, "options": {"where": "tower", "after": 1}},
    "cut by pixels": {"strategy": "gui_dedup", "keep": 0.4, "options": {"where": "tower", "after": 0}},
    "trained scorer": {"strategy": "stts", "keep": 0.4},
    "one token": {"strategy": "divprune", "keep": 0.001},
    "shared": {"strategy": "divprune", "max_tokens": 50},
    "images only": {"strategy": "divprune", "keep": 0.3, "video": None},
    "nothing": None,
}


CAPTURING = [
    name
    for name in VISUAL.names()
    if (wanted := VISUAL.create(name).wanted()) & {"tower_attention", "projector", "scorer", "text"}
    and "weights" not in wanted
]


class Placed:
    """Encoder outputs that the engine has made, by the key of their plan: cells that the language model got.

    Attributes:
        cells: of each pruned item, in order.
        calls: times that the encoder ran.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cells: dict[str, list[int]] = {}
        self.calls = 0
        self.original = model.embed_multimodal

    def __call__(self, **kwargs: Any) -> Any:
        self.calls += 1
        rows = {modality: kwargs.get(field_name(modality)) for modality in ("image", "video")}
        grids = {modality: kwargs.get(f"{modality}_grid_thw") for modality in rows}
        seconds = kwargs.get("second_per_grid_ts")
        outputs = list(self.original(**kwargs))
        at = 0
        for modality in rows:
            if grids[modality] is None:
                continue
            for i, thw in enumerate(grids[modality].tolist()):
                plan = decode(rows[modality][i])
                if plan is not None:
                    step = 1.0
                    if modality == "video" and hasattr(self.model, "_seconds"):
                        step = self.model._seconds(None if seconds is None else seconds[i])
                    self.cells[plan.key] = self.read(outputs[at], plan, thw, step)
                at += 1
        assert at == len(outputs)
        return tuple(outputs)

    def read(self, output: torch.Tensor, plan: ItemPlan, thw: list[int], step: float) -> list[int]:
        """Cells of an item, from the coordinates of its rows."""
        _, relative = detach(output, self.model.output_width)
        assert relative is not None
        (time, row, col), (frames, height, width) = relative.tolist(), thw
        times = {int(frame * step): frame for frame in range(frames)}
        assert len(times) == frames, "frames that share a time could not be told apart here"
        if plan.per_frame is not None:
            # Qwen3-VL: frames are grids of their own, one after the other.
            frame_of = [frame for frame, count in enumerate(plan.per_frame) for _ in range(count)]
        else:
            frame_of = [times[t] for t in time]
        return [(f * height // 2 + r) * width // 2 + c for f, r, c in zip(frame_of, row, col, strict=True)]


@contextmanager
def observed(llm: Any) -> Iterator[Placed]:
    model = model_of(llm)
    placed = Placed(model)
    model.embed_multimodal = placed
    try:
        yield placed
    finally:
        del model.embed_multimodal


def ask(llm: Any, request: Request) -> tuple[RequestContext, list[dict[str, Any]]]:
    """Generate one token under a context, as the server does; the context, and the items of its answer."""
    context = RequestContext(decision=Decision(None, return_kept=True))
    token = CURRENT.set(context)
    try:
        generate(llm, [request], 1)
    finally:
        CURRENT.reset(token)
    keys = context.unknown_kept()
    (bitmaps,) = llm.collective_rpc("vllm_prune_kept", args=(keys,))
    context.record_kept(dict(zip(keys, bitmaps, strict=True)))
    report = visual_report(context.items, return_kept=True)
    assert report is not None
    return context, report["items"]


def cells_of(item: dict[str, Any]) -> list[int]:
    bits = np.unpackbits(np.frombuffer(base64.b64decode(item["kept"]), dtype=np.uint8))
    assert not bits[item["input_tokens"] :].any()
    return np.flatnonzero(bits).tolist()


@pytest.fixture
def llm(family: str, engines: EnginePool) -> Any:
    return engines.get(family, worker_extension_cls=EXTENSION)


@pytest.fixture
def request_of(family: str) -> Callable[[Visual], Request]:
    """A video between two images: in prompt order, not in the order of modalities."""
    cell = CELL[family]
    a, b = media.image(6 * cell, 9 * cell, 1), media.image(5 * cell - 9, 4 * cell + 3, 2)
    v = media.video(8, 4 * cell, 5 * cell, seed=5)
    return lambda visual: media.ask(a, v, b, visual=visual)


@pytest.mark.parametrize("name", BUDGETS)
def test_named_tokens_are_those_that_were_placed(name: str, llm: Any, request_of: Callable[[Visual], Request]) -> None:
    with observed(llm) as placed:
        for warm in (False, True):
            before = placed.calls
            context, items = ask(llm, request_of(BUDGETS[name]))
            assert (placed.calls == before) == warm
            assert [item["modality"] for item in items] == ["image", "video", "image"]
            for item, report in zip(items, context.items, strict=True):
                assert int(np.prod(item["grid"])) == item["input_tokens"]
                cells = cells_of(item)
                assert len(cells) == item["kept_tokens"]
                if item["kept_tokens"] == item["input_tokens"]:
                    assert cells == list(range(item["input_tokens"]))
                    assert report["kept_key"] not in placed.cells
                else:
                    assert cells == placed.cells[report["kept_key"]]
    pruned = sum(item["kept_tokens"] < item["input_tokens"] for item in items)
    assert pruned == {"nothing": 0, "images only": 2}.get(name, 3)


def test_a_batch_of_budgets_keeps_them_apart(llm: Any, request_of: Callable[[Visual], Request]) -> None:
    """Bitmaps of one picture under several budgets, all remembered at once; and they do differ."""
    with observed(llm) as placed:
        asked = {name: request_of(budget) for name, budget in BUDGETS.items() if budget}
        generate(llm, list(asked.values()), 1)
        seen = set()
        for request in asked.values():
            context, items = ask(llm, request)
            for item, report in zip(items, context.items, strict=True):
                if item["kept_tokens"] < item["input_tokens"]:
                    assert cells_of(item) == placed.cells[report["kept_key"]]
            seen.add(items[0]["kept"])
    assert len(seen) > 4


def test_batch_mates_change_no_choice(llm: Any, request_of: Callable[[Visual], Request]) -> None:
    """Strategies whose signals are captured while the tower runs: one batch of all, then each request by itself."""
    asked = {name: request_of(strategy_budget(name)) for name in CAPTURING}
    reset(llm)
    with observed(llm) as placed:
        generate(llm, list(asked.values()), 1)
    together = dict(placed.cells)
    assert placed.calls < len(together)
    for name, request in asked.items():
        reset(llm)
        context, items = ask(llm, request)
        for item, report in zip(items, context.items, strict=True):
            if item["kept_tokens"] < item["input_tokens"]:
                assert cells_of(item) == together[report["kept_key"]], name


def test_what_the_store_has_forgotten_is_null(llm: Any, request_of: Callable[[Visual], Request]) -> None:
    request = request_of(BUDGETS["behind the tower"])
    ask(llm, request)
    KEPT._items.clear()
    _, items = ask(llm, request)
    assert [item["kept"] for item in items] == [None, None, None]
    # Encoded again, it is known again.
    llm.llm_engine.reset_encoder_cache()
    assert llm.reset_prefix_cache()
    _, items = ask(llm, request)
    assert all(item["kept"] for item in items)


def test_pixels_need_no_worker(llm: Any, request_of: Callable[[Visual], Request]) -> None:
    KEPT._items.clear()
    request = request_of(BUDGETS["pixels"])
    ask(llm, request)
    KEPT._items.clear()
    context, items = ask(llm, request)
    assert not context.unknown_kept()
    assert all(item["kept"] for item in items)
