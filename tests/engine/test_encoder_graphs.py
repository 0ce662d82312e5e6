"""Encoder graphs with budgets: vLLM's manager captures, packs and replays them, on real models, emulated on the CPU.

Emulated are the kernels' recording (`tests.emulated_graphs`) and attention whose shapes depend on no value, as that of
CUDA, which leaves NaN behind the last sequence.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.model_executor.layers.attention import MMEncoderAttention
from vllm.v1.worker import encoder_cudagraph
from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager

from tests import emulated_graphs
from vllm_prune.visual.item_plan import ItemPlan, unpruned

from .checkpoints import random_scorer
from .engines import EnginePool, model_of

pytestmark = pytest.mark.slow
SIZES = [16, 64]
"""Visual tokens of a graph."""
SMALL = [[1, 8, 12], [1, 8, 8], [1, 12, 8], [1, 4, 4]]
LARGE, VIDEOS = [[1, 16, 20], *SMALL[:2]], [[3, 6, 4], [5, 4, 4], [2, 6, 6]]


def attention(
    self: Any, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: Any, sequence_lengths: Any
) -> Tensor:
    """Attention inside each sequence. Rows of none are read by no kernel, and what stands there afterwards is NaN."""
    rows = torch.arange(query.shape[1])
    # Not all of vLLM's offsets ascend: behind the last sequence they may be zero.
    inside = (cu_seqlens[:-1, None] <= rows) & (rows < cu_seqlens[1:, None])
    padding = ~inside.any(0)[:, None, None]
    sequence = inside.int().argmax(0).masked_fill(padding.flatten(), -1)
    heads = [one.view(*one.shape[:2], -1, self.head_size) for one in (query, key, value)]
    queries, keys, values = (one[0].masked_fill(padding, 0).transpose(0, 1) for one in heads)
    logits = (queries @ keys.transpose(-1, -2)) * self.scale
    weights = logits.masked_fill(sequence[:, None] != sequence, float("-inf")).softmax(-1)
    found = (weights @ values).transpose(0, 1).masked_fill(padding, float("nan"))
    return found[None].view(query.shape)


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def llm(request: pytest.FixtureRequest, engines: EnginePool) -> Any:
    return engines.get(request.param)


@pytest.fixture
def model(llm: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With a scorer behind the first block, which refills no frames."""
    model = model_of(llm)
    family = "qwen3_vl" if model.level_blocks() else "qwen2_5_vl"
    monkeypatch.setattr(model._scorer, "scorer", random_scorer(family, 1))
    return model


Capture = Callable[[], EncoderCudaGraphManager]


@pytest.fixture
def capture(llm: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> Capture:
    """Captures all graphs by vLLM's manager; what a model answers without it has to be known by then."""

    def captured() -> EncoderCudaGraphManager:
        emulated_graphs.install(monkeypatch)
        monkeypatch.setattr(encoder_cudagraph, "current_stream", lambda: None)
        for module in model.visual.modules():
            if isinstance(module, MMEncoderAttention):
                monkeypatch.setattr(module, "_forward_method", attention.__get__(module))
        monkeypatch.setattr(model._scorer.wide, "_forward_method", attention.__get__(model._scorer.wide))
        config = llm.llm_engine.vllm_config
        for name, value in (("token_budgets", SIZES), ("max_vision_items_per_batch", 4), ("max_frames_per_batch", 16)):
            monkeypatch.setattr(config.compilation_config, f"encoder_cudagraph_{name}", value)
        manager = EncoderCudaGraphManager(config, torch.device("cpu"), torch.float32, model)
        manager.capture("pool")
        return manager

    return captured


def inside(count: int, after: int | None = None, strategy: str = "divprune") -> ItemPlan:
    return ItemPlan(strategy, json.dumps({"where": "tower", "after": after}), count, 2)


def scored(count: int) -> ItemPlan:
    return ItemPlan("stts", "{}", count, 3)


BEHIND = ItemPlan("uniform", "{}", 3, 1)


def batch_of(model: Any, thw: list[list[int]], plans: list[ItemPlan | None], modality: str = "image") -> dict[str, Any]:
    """Keyword arguments of an encoder call, as vLLM's runner makes them."""
    vision, after = model.config.vision_config, len(model.visual.blocks) - 1
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    patches, generator = sum(t * h * w for t, h, w in thw), torch.Generator().manual_seed(len(thw))
    pixels = torch.randint(256, (patches, width), generator=generator, dtype=torch.uint8)
    # The front end has named the block by then.
    plans = [plan and replace(plan, options=plan.options.replace("null", str(min(4, after)))) for plan in plans]
    rows = [unpruned() if plan is None else plan.encode() for plan in plans]
    pixel_name = "pixel_values" if modality == "image" else "pixel_values_videos"
    timing = {"second_per_grid_ts": [torch.tensor(0.5)] * len(thw)} if modality == "video" else {}
    return {pixel_name: pixels, f"{modality}_grid_thw": torch.tensor(thw), f"{modality}_prune": rows, **timing}


MANY = [[20, 4, 4], [18, 4, 4], SMALL[1]]
BATCHES: dict[str, tuple[list[list[int]], list[ItemPlan | None], str]] = {
    "one cut": (SMALL[:1], [inside(9)], "image"),
    "cuts of several sizes": (SMALL, [inside(9), inside(3, strategy="uniform"), inside(20), inside(1)], "image"),
    "all kinds of items": (SMALL, [inside(9), None, BEHIND, inside(2)], "image"),
    "a cut without a graph": (SMALL, [inside(9, after=0), inside(5), None, BEHIND], "image"),
    "more than a dense graph holds": (LARGE, [inside(12), inside(4), None], "image"),
    "more than any graph holds": (LARGE, [inside(70), inside(4), BEHIND], "image"),
    "more frames than a graph has sequences for": (
        [[20, 4, 4], [18, 6, 6], SMALL[1]],
        [inside(40), None, inside(3)],
        "video",
    ),
    "videos": (VIDEOS, [inside(8), inside(11), None], "video"),
    "scores": (SMALL, [scored(9), inside(4), scored(3), None], "image"),
    "scores of videos": (VIDEOS, [scored(8), scored(5), BEHIND], "video"),
    "scores, more than a dense graph holds": (LARGE, [scored(12), scored(5), None], "image"),
}


@pytest.mark.parametrize("name", BATCHES)
@torch.inference_mode()
def test_replays_answer_as_eager_calls(name: str, model: Any, capture: Capture) -> None:
    thw, plans, modality = BATCHES[name]
    eager = model.embed_multimodal(**batch_of(model, thw, plans, modality))
    manager = capture()
    replays = emulated_graphs.STATE.replays
    # Twice, as a graph that has run holds an earlier batch.
    for _ in range(2):
        found = manager.execute(batch_of(model, thw, plans, modality))
        assert len(found) == len(eager)
        for graphed, plain in zip(found, eager, strict=True):
            assert graphed.shape == plain.shape
            torch.testing.assert_close(graphed, plain, atol=1e-4, rtol=1e-4)
        manager.execute(batch_of(model, SMALL, [inside(3), inside(16), None, scored(2)]))
    assert emulated_graphs.STATE.replays > replays


@torch.inference_mode()
def test_paths_are_those_of_the_places_to_cut(model: Any, capture: Capture) -> None:
    manager = capture()
    after = min(4, len(model.visual.blocks) - 1)
    names = {"default", *(f"{part} {place}" for part in ("dense", "survivors") for place in (after, "1 scored"))}
    assert manager.budget_graphs.keys() == names
    assert all(graphs.keys() == set(SIZES) for graphs in manager.budget_graphs.values())
    manager.execute(batch_of(model, SMALL[:1], [inside(9)]))
    # 24 cells in front of the cut, 9 behind it; the last replay is that of the survivors.
    assert emulated_graphs.STATE.last is manager.budget_graphs[f"survivors {after}"][16].graph
    assert manager.graph_misses == 0


@torch.inference_mode()
def test_a_scorer_that_refills_frames_has_no_graphs(
    model: Any, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = model._scorer.scorer
    monkeypatch.setattr(scorer, "shape", replace(scorer.shape, refill="ffd"))
    thw, plans, modality = BATCHES["scores of videos"]
    eager = model.embed_multimodal(**batch_of(model, thw, plans, modality))
    manager = capture()
    assert not any("scored" in path for path in manager.budget_graphs)
    found = manager.execute(batch_of(model, thw, plans, modality))
    for graphed, plain in zip(found, eager, strict=True):
        torch.testing.assert_close(graphed, plain, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_stale_memory_would_show(model: Any, capture: Capture) -> None:
    """A control: a survivors' graph that kept an earlier batch's offsets would answer otherwise."""
    batch = batch_of(model, SMALL[:2], [inside(9), inside(4)])
    eager = model.embed_multimodal(**batch)
    manager = capture()
    for name in [name for name in manager.config.padding_logics if name.startswith("packed")]:
        manager.config.padding_logics[name] = lambda memory, offsets: None
    found = manager.execute(batch)
    assert any(not torch.allclose(one, other, atol=1e-3) for one, other in zip(found, eager, strict=True))
