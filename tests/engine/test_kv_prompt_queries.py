"""Expected attention from all queries of a prompt: those that transformers computes, chunked, batched and cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vllm_prune.budget.kv import KvSpec
from vllm_prune.kv.strategies.base import LayerView
from vllm_prune.kv.strategies.expected_attention import ExpectedAttention

from . import media
from .checkpoints import CELL
from .engines import EnginePool, runner_of
from .eviction import evict, scheduler_of
from .oracle import Oracle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SINKS = 3
SPEC = KvSpec("expected_attention", f'{{"queries": "prompt", "sinks": {SINKS}}}', keep="0.4", buffer=12)


def test_moments_are_those_of_every_query_before_rotation(
    family: str,
    engines: EnginePool,
    summing: dict[str, Any],
    oracles: Callable[[str], Oracle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell, oracle = CELL[family], oracles(family)
    shown = [media.image(6 * cell, 7 * cell, 1), media.video(4, 4 * cell, 4 * cell, seed=2)]
    request = media.ask(*shown, visual={"keep": 0.5, "strategy": "uniform"})
    others = [media.ask(media.image(5 * cell, 6 * cell, seed)) for seed in (3, 4)]
    llm = engines.get(family, **summing)
    exact = _queries(oracle, request)
    seen: list[LayerView] = []
    original = ExpectedAttention.select

    def select(self: Any, view: LayerView, count: int) -> Any:
        seen.append(view)
        return original(self, view, count)

    monkeypatch.setattr(ExpectedAttention, "select", select)
    # Cold and alone; then with the whole prompt in the prefix cache, and with others, of which one waits for a slot.
    for requests in ([request], [request, *others]):
        seen.clear()
        outputs = evict(llm, requests, [SPEC] * len(requests), 30)
        rows = len(outputs[0].prompt_token_ids)
        first = [view for view in seen if view.first and view.rows == rows][: len(exact)]
        assert len([view for view in seen if not view.first]) >= 2 * len(exact)
        assert [view.layer for view in first] == list(range(len(exact)))
        for view, queries in zip(first, exact, strict=True):
            assert len(queries) == rows
            _check(view, queries[SINKS:])
    # Workers hear of what has finished with the next step.
    llm.llm_engine.step()
    assert sorted(runner_of(llm).kv_sums.free) == [0, 1]
    assert scheduler_of(llm).windows.summing == {}
    assert scheduler_of(llm).windows.whole == set()


def _check(view: LayerView, queries: Tensor) -> None:
    assert view.moments is not None
    mean = queries.mean(dim=0)
    apart = queries - mean
    covariance = torch.einsum("nhd,nhe->hde", apart, apart) / len(queries)
    torch.testing.assert_close(view.moments.mean.cpu(), mean.float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(view.moments.covariance.cpu(), covariance.float(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def _queries(oracle: Oracle, request: media.Request) -> list[Tensor]:
    """Per layer float64 [n, heads, D], what goes to rotary embedding in transformers' prefill."""
    layers = oracle.hf.model.language_model.layers
    found: list[list[Tensor]] = [[] for _ in layers]
    hooks = []
    for layer, kept in zip(layers, found, strict=True):
        attention = layer.self_attn
        source = attention.q_norm if hasattr(attention, "q_norm") else attention.q_proj

        def listen(
            module: Any, args: Any, output: Tensor, kept: list[Tensor] = kept, size: int = attention.head_dim
        ) -> None:
            kept.append(output[0].reshape(output.shape[1], -1, size).double())

        hooks.append(source.register_forward_hook(listen))
    oracle.answer(request, 1)
    for hook in hooks:
        hook.remove()
    return [kept[0] for kept in found]
