"""The sampled attention capture equals transformers' full softmax where every query is sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vllm_prune.catalogue import VISUAL
from vllm_prune.visual.frontend.frame_split import frame_counts
from vllm_prune.visual.models import qwen_vl
from vllm_prune.visual.strategies.base import Context
from vllm_prune.visual.tower import received_attention

from . import media
from .attention import received
from .checkpoints import CELL
from .engines import EnginePool, answer_of, generate, model_of
from .matrix import STEPS, UNIFORM
from .oracle import Item, Oracle, compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Recording(received_attention.TowerAttention):
    """Always listens, and remembers what it heard."""

    heard: list[list[Tensor]] = []  # noqa: RUF012

    def __init__(self, model: Any, blocks: int | None) -> None:
        super().__init__(model, 1 if blocks == 0 else blocks)

    def per_item(self, grid_thw: Tensor) -> Any:
        found = super().per_item(grid_thw)
        Recording.heard.append(found)  # type: ignore[arg-type]
        return found


def captured(llm: Any, request: media.Request, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the adapter captures for each item of a request."""
    monkeypatch.setattr(qwen_vl, "TowerAttention", Recording)
    Recording.heard = []
    generate(llm, [request], 1)
    return [item[0].cpu() for batch in Recording.heard for item in batch]


def block_of(model: Any) -> int:
    """Index of the tower block that the adapter listens to."""
    listened = model.tower_attention_blocks()[0]
    return [block.attn for block in model.visual.blocks].index(listened)


def shapes(cell: int) -> list[tuple[int, int]]:
    """Image sizes of at most 64 patches, so all queries are sampled; some span two windows of 4 x 4 cells."""
    return [(2 * cell, 8 * cell), (4 * cell, 4 * cell), (8 * cell, 2 * cell), (2 * cell, 7 * cell)]


def test_images(
    family: str, engines: EnginePool, oracles: Callable[[str], Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [media.image(*size, seed) for seed, size in enumerate(shapes(CELL[family]))]
    request = media.ask(*images, visual={**UNIFORM, "keep": 0.5})
    llm, oracle = engines.get(family), oracles(family)
    inputs, _, _ = oracle.expand(request)
    expected = received(oracle, inputs.pixel_values, inputs.image_grid_thw, block_of(model_of(llm)))
    found = captured(llm, request, monkeypatch)
    assert len(found) == len(expected) == 4
    for got, want in zip(found, expected, strict=True):
        # Attention of a frame sums to 1 over its patches, so a cell's mean is a quarter of its sum.
        torch.testing.assert_close(want.sum() * 4, torch.tensor(1.0))
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)


def test_frames_of_videos(
    family: str, engines: EnginePool, oracles: Callable[[str], Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = CELL[family]
    videos = [media.video(6, 2 * cell, 6 * cell, seed=1), media.video(4, 3 * cell, 5 * cell, seed=2)]
    request = media.ask(*videos, visual={**UNIFORM, "keep": 0.5})
    llm, oracle = engines.get(family), oracles(family)
    inputs, _, _ = oracle.expand(request)
    block = block_of(model_of(llm))
    expected = received(oracle, inputs.pixel_values_videos, inputs.video_grid_thw, block)
    found = captured(llm, request, monkeypatch)
    assert len(found) == len(expected) == 2
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)


def test_chosen_blocks(
    family: str, engines: EnginePool, oracles: Callable[[str], Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks that attend to whole frames, the last one first."""
    visual = {"strategy": "vtc_cls", "keep": 0.5}
    request = media.ask(
        *[media.image(*size, seed) for seed, size in enumerate(shapes(CELL[family])[:2])], visual=visual
    )
    llm, oracle = engines.get(family), oracles(family)
    inputs, _, _ = oracle.expand(request)
    captured(llm, request, monkeypatch)
    [items] = Recording.heard
    blocks = [block.attn for block in model_of(llm).visual.blocks]
    places = [blocks.index(one) for one in model_of(llm).tower_attention_blocks()]
    assert len(places) == (4 if family == "qwen3_vl" else 1)
    for row, place in enumerate(places):
        expected = received(oracle, inputs.pixel_values, inputs.image_grid_thw, place)
        for got, want in zip(items, expected, strict=True):
            torch.testing.assert_close(got[row].cpu(), want, atol=1e-6, rtol=1e-4)


def test_larger_images_use_64_queries(
    family: str, engines: EnginePool, oracles: Callable[[str], Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = CELL[family]
    images = [media.image(6 * cell, 7 * cell, 1), media.image(5 * cell, 9 * cell, 2)]
    request = media.ask(*images, visual={**UNIFORM, "keep": 0.5})
    llm, oracle = engines.get(family), oracles(family)
    inputs, _, _ = oracle.expand(request)
    args = (oracle, inputs.pixel_values, inputs.image_grid_thw, block_of(model_of(llm)))
    found = captured(llm, request, monkeypatch)
    for got, want in zip(found, received(*args, queries=64), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)


def test_nothing_is_captured_unless_asked_for(family: str, engines: EnginePool) -> None:
    llm, cell = engines.get(family), CELL[family]
    module = model_of(llm).tower_attention_blocks()[0]
    before = len(module._forward_pre_hooks)
    generate(llm, [media.ask(media.image(4 * cell, 4 * cell, 5), visual={**UNIFORM, "keep": 0.5})], 1)
    assert len(module._forward_pre_hooks) == before == 0


class AttentionOracle(Oracle):
    """Gives strategies the attention of transformers' own tower."""

    def choose(
        self, item: Item, name: str, count: int, options: dict[str, Any] | None, earlier: Sequence[Item]
    ) -> Tensor:
        vision = self.config.vision_config
        block = max(getattr(vision, "fullatt_block_indexes", [vision.depth - 1]))
        thw = torch.tensor([[item.grid.frames, item.grid.rows * 2, item.grid.cols * 2]])
        attention = received(self, item.patches, thw, block, queries=received_attention.QUERIES)[0]
        per_frame = None
        if self.qwen3 and item.modality == "video":
            per_frame = frame_counts(count, item.grid, item.patches, VISUAL.strategy_class(name).frame_split)
        context = Context(tower_attention=attention)
        return VISUAL.create(name, options).select(item.features, item.grid, count, context, per_frame)


@pytest.mark.parametrize("keep", [0.5, 0.2])
def test_recv_attn_answers(family: str, keep: float, engines: EnginePool, checkpoints: dict[str, Path]) -> None:
    cell = CELL[family]
    a, b = media.image(6 * cell, 7 * cell, 1), media.image(5 * cell, 4 * cell, 2)
    v = media.video(8, 4 * cell, 5 * cell, seed=5)
    request = media.ask(a, v, b, visual={"strategy": "recv_attn", "keep": keep})
    answer = answer_of(generate(engines.get(family), [request], STEPS)[0])
    compare(answer, AttentionOracle(checkpoints[family]).answer(request, STEPS))
