"""Choosing visual tokens and placing them never make the host wait for the device, so that it can run ahead of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.emulated_device import DEVICE, EmulatedDevice, HostSync, on_device, on_host, permissions
from tests.visual.strategies.trained import frames_for, network_for
from vllm_prune.catalogue import VISUAL
from vllm_prune.grid import Grid
from vllm_prune.signals import FRONT_END
from vllm_prune.visual.item_plan import ItemPlan
from vllm_prune.visual.models.member_positions import MemberPositions
from vllm_prune.visual.models.positions import StepOffsets, attach, detach, grid_positions, members_of
from vllm_prune.visual.strategies._trained import Network
from vllm_prune.visual.strategies.base import Context
from vllm_prune.visual.tower.select import choose_cells
from vllm_prune.visual.tower.signals import ItemSource
from vllm_prune.visual.tower.survivors import Survivors

pytestmark = pytest.mark.slow

Put = Callable[[Tensor], Tensor]
GRIDS = {"image": Grid(1, 9, 12), "large image": Grid(1, 20, 30), "video": Grid(6, 4, 5), "even video": Grid(6, 4, 5)}
PER_FRAME = (9, 0, 4, 20, 1, 2)
IN_WORKERS = [name for name in VISUAL.names() if name != "none" and not VISUAL.strategy_class(name).needs & FRONT_END]
BY_NATURE = {"cacovid", "fastvid", "holitom", "vcast", "vidcom2"}
"""Shares of frames, scenes and windows come from features: how many tokens each has decides sizes, host numbers."""


def chosen(put: Put, name: str, kind: str) -> Tensor:
    """Kept cells of a random item, the members of those that others are merged into, and rows that layers compute."""
    grid, source = GRIDS[kind], torch.Generator().manual_seed(3)
    features = put(torch.randn(grid.tokens, 200, generator=source))
    scores = put(torch.rand(grid.tokens, generator=source))
    per_frame = PER_FRAME if kind == "video" else None
    count = sum(PER_FRAME) if grid.frames > 1 else grid.tokens // 3
    strategy = VISUAL.create(name)
    text = put(torch.randn(4, 200, generator=source))
    network = network_for(name, 200)
    if network is not None:
        network = Network({name: put(tensor) for name, tensor in network.tensors.items()}, network.language)
    context = Context(5, scores, scores, scores, text, network, frames_for(grid, features))
    reduction = strategy.reduce(features, grid, count, context, per_frame)
    places = on_host(torch.cat([reduction.kept, reduction.members_of(3).flatten()]))
    # Places alone say nothing of layers that make the rows.
    return torch.cat([places.float(), on_host(reduction.rows(features)).flatten()]) if strategy.rewrites else places


def kinds_of(name: str) -> list[str]:
    modalities = VISUAL.strategy_class(name).modalities
    return [kind for kind in GRIDS if ("video" if "video" in kind else "image") in modalities]


WAITS = {(name, kind) for name in BY_NATURE for kind in kinds_of(name) if kind != "video"}
CASES = [(name, kind) for name in IN_WORKERS for kind in kinds_of(name)]


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation of the emulated device is slow, and each step of a loop has the same ones."""
    monkeypatch.setattr("vllm_prune.visual.strategies.maths.diversity.ONE_BY_ONE", 3)
    monkeypatch.setattr("vllm_prune.visual.strategies.maths.transport.STEPS", 2)


@torch.inference_mode()
@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case not in WAITS])
def test_no_strategy_waits_and_each_keeps_what_it_keeps_on_the_cpu(name: str, kind: str) -> None:
    expected = chosen(torch.clone, name, kind)
    with EmulatedDevice():
        kept = chosen(on_device, name, kind)
    torch.testing.assert_close(kept, expected)


@torch.inference_mode()
@pytest.mark.parametrize("name", IN_WORKERS)
def test_vllms_own_check_lets_only_these_wait(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = permissions(monkeypatch, "vllm_prune.visual.tower.select.gpu_sync_allowed")
    grid = GRIDS[kinds_of(name)[-1]]
    scores = torch.rand(grid.tokens)
    features = torch.randn(grid.tokens, 200)
    unpooled = frames_for(grid, features)
    context = Context(5, scores, scores, scores, torch.randn(4, 200), network_for(name, 200), unpooled)
    monkeypatch.setattr("vllm_prune.visual.tower.select.context_of", lambda *_: context)
    source = ItemSource(grid, features)
    assert len(choose_cells(ItemPlan(name, "{}", 9, 1), source)) == 9
    assert allowed == [True] * (name in BY_NATURE)


@torch.inference_mode()
@pytest.mark.parametrize(("name", "kind"), sorted(WAITS))
def test_what_waits_by_nature_is_what_is_listed(name: str, kind: str) -> None:
    with EmulatedDevice(), pytest.raises(HostSync):
        chosen(on_device, name, kind)


def step(put: Put, device: torch.device, host_mask: bool) -> list[Tensor]:
    """Kept rows of two items, one of which the front end has chosen, and the positions of their step."""
    grid, source = Grid(2, 3, 4), torch.Generator().manual_seed(4)
    plans = [
        ItemPlan("uniform", "{}", 9, 1),
        ItemPlan("gui_dedup", "{}", 5, 1, indices=(0, 3, 7, 20, 23)),
    ]
    rows, embeddings = [], put(torch.randn(grid.tokens, 16, generator=source))
    for plan in plans:
        kept = choose_cells(plan, ItemSource(grid, embeddings))
        relative = grid_positions(grid.frames, grid.rows, grid.cols)
        coordinates = placed(relative, device)
        several = coordinates[:, kept[:, None].expand(-1, 3)] if plan.strategy == "uniform" else None
        rows.append(attach(embeddings[kept], coordinates[:, kept], several))
    split = [detach(part, 16) for part in rows]
    mask = torch.tensor([False] * 3 + [True] * 9 + [False] + [True] * 5 + [False] * 2)
    offsets = StepOffsets(32, device)
    mask = mask if host_mask else put(mask)
    offsets.write([relative for _, relative in split], [9, 5], mask)
    positions = put(torch.zeros(3, 20, dtype=torch.int64))
    members = MemberPositions(rotating(put), 32)
    assert members.obstacle is None
    members.write([members_of(part, 16) for part in rows], [9, 5], mask)
    members.compose(positions)
    offsets.apply(positions)
    handed = members.hand_on(positions)
    offsets.clear()
    members.clear()
    alive = Survivors.of(kept, grid.tokens, 4).patches(put(torch.randn(grid.tokens * 4, 2, generator=source)))
    plain = (rows for rows, _ in split)
    return [on_host(one) for one in (*plain, positions, alive, offsets.buffer, handed)]


def rotating(put: Put) -> nn.Module:
    """A language model with a rotary table."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import MRotaryEmbedding

    with set_current_vllm_config(VllmConfig()):
        rope = MRotaryEmbedding(16, 16, 40, 10_000.0, True, torch.float32, [2, 3, 3], positions_factor=1)
    rope.cos_sin_cache = put(rope.cos_sin_cache)
    return nn.ModuleList([rope])


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """As `PrunedModel._place` does it."""
    from vllm_prune.visual.models import qwen_vl

    return qwen_vl.async_tensor_h2d(tensor, device=device)


@torch.inference_mode()
@pytest.mark.parametrize("host_mask", [False, True])
def test_placing_kept_tokens_does_not_wait(host_mask: bool) -> None:
    expected = step(torch.clone, torch.device("cpu"), host_mask)
    with EmulatedDevice():
        found = step(on_device, DEVICE, host_mask)
    assert expected[2].any()
    assert (expected[-1] >= 40).sum() == 3 * 9
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@torch.inference_mode()
def test_the_layout_of_a_video_with_marks_does_not_wait() -> None:
    from vllm_prune.visual.models.molmo2 import layout

    plan, kept = ItemPlan("uniform", "{}", 5, 1, per_frame=(2, 0, 3)), torch.tensor([1, 4, 13, 14, 16])

    def laid_out(put: Put) -> Any:
        return [on_host(one) for one in layout(put(kept), plan, Grid(3, 2, 3))]

    expected = laid_out(torch.clone)
    with EmulatedDevice():
        found = laid_out(on_device)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@torch.inference_mode()
def test_a_wait_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_prune.visual.strategies.base.places_of", lambda mask, count: mask.nonzero().squeeze(1))
    with EmulatedDevice(), pytest.raises(HostSync):
        chosen(on_device, "recv_attn", "video")
