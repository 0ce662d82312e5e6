"""Sums over a prompt's queries: exact whatever the chunks, whoever else is in the step, and inside CUDA graphs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import emulated_graphs
from tests.kv.keys import key
from vllm_prune.kv import prompt_queries
from vllm_prune.kv.prompt_queries import PromptQueries
from vllm_prune.kv.token_sums import SumPlan

CPU = torch.device("cpu")
LAYERS, HEADS, DIM, TOKENS, WIDTH = 2, 3, 4, 16, 40


class Norm(nn.Module):
    """In the place of a model's norm of queries."""

    def forward(self, queries: Tensor) -> Tensor:
        """Twice the queries."""
        return queries * 2


def made(capacity: int = 2) -> tuple[nn.Module, PromptQueries]:
    attention = [nn.ModuleDict({"q_norm": Norm()}) for _ in range(LAYERS)]
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"self_attn": one}) for one in attention])})
    layers = [
        SimpleNamespace(layer_name=f"layers.{index}.self_attn.attn", num_heads=HEADS, head_size=DIM)
        for index in range(LAYERS)
    ]
    sums = PromptQueries(model, layers, capacity, TOKENS, CPU, key())
    assert sums.hooked
    return model, sums


def run(model: nn.Module, queries: Tensor) -> None:
    """A step: layer 0 sees the queries, layer 1 their halves, one after the other."""
    for index, layer in enumerate(model["layers"]):
        layer["self_attn"]["q_norm"](queries / (index + 1))


def check(sums: PromptQueries, slot: int, queries: Tensor) -> None:
    """The mean and the covariance of what was added, against those of all queries at once in float64."""
    for index in range(LAYERS):
        exact = queries.double() * 2 / (index + 1)
        moments = sums.at(index, slot)
        torch.testing.assert_close(moments.mean.double(), exact.mean(dim=0), rtol=1e-5, atol=1e-5)
        apart = exact - exact.mean(dim=0)
        covariance = torch.einsum("nhd,nhe->hde", apart, apart) / len(exact)
        torch.testing.assert_close(moments.covariance.double(), covariance, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", [3, 2048])
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_chunks_of_two_prompts_and_other_tokens(part: int, first: list[int], second: list[int]) -> None:
    model, sums = made()
    source = torch.Generator().manual_seed(sum(first) + 7 * sum(second))
    slots, added = [sums.acquire(), sums.acquire()], [[torch.zeros(0, HEADS, DIM)], [torch.zeros(0, HEADS, DIM)]]
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(prompt_queries, "PART", part)
        for counts in zip(first, second, strict=False):
            queries, plan, start = torch.randn(TOKENS, HEADS, DIM, generator=source), SumPlan(), 1
            for slot, count, kept in zip(slots, counts, added, strict=True):
                if count:
                    plan.parts.append((slot, start, start + count))
                    kept.append(queries[start : start + count])
                start += count + 1
            sums.arm(plan)
            run(model, queries)
            sums.disarm()
            # Nothing is added by a step of others.
            run(model, queries)
    for slot, kept in zip(slots, added, strict=True):
        assert float(sums.counts[slot]) == sum(len(part) for part in kept)
        if sum(len(part) for part in kept):
            check(sums, slot, torch.cat(kept))


def test_replays_add_what_their_step_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph was captured by a dummy step; padding may hold anything."""
    emulated_graphs.install(monkeypatch)
    emulated_graphs.PYTHON_OPERATORS["vllm_prune::sum_queries"] = prompt_queries._sum_queries
    model, sums = made()
    batch, graph = torch.zeros(TOKENS, HEADS, DIM), emulated_graphs.Graph()
    with emulated_graphs.graph(graph):
        run(model, batch)
    memory = [one.data_ptr() for one in (sums.counts, sums.target, *sums.sums, *sums.products)]
    slots, source = [sums.acquire(), sums.acquire()], torch.Generator().manual_seed(3)
    steps = [[(0, 0, 5), (1, 6, 9)], [(1, 0, 2)], [], [(0, 2, 12)]]
    added: dict[int, list[Tensor]] = {0: [], 1: []}
    for parts in steps:
        batch.copy_(torch.randn(batch.shape, generator=source))
        batch[14:] = float("nan")
        for slot, start, end in parts:
            added[slot].append(batch[start:end].clone())
        sums.arm(SumPlan([(slots[slot], start, end) for slot, start, end in parts]))
        graph.replay()
        sums.disarm()
        graph.replay()
    for slot in slots:
        check(sums, slot, torch.cat(added[slot]))
        assert float(sums.counts[slot]) == sum(len(part) for part in added[slot])
    assert [one.data_ptr() for one in (sums.counts, sums.target, *sums.sums, *sums.products)] == memory


def test_a_graph_captured_without_the_sums_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what is decided in Python does not reach a replay."""
    emulated_graphs.install(monkeypatch)
    monkeypatch.setattr(prompt_queries.cuda_graphs, "capturing", lambda: False)
    emulated_graphs.PYTHON_OPERATORS["vllm_prune::sum_queries"] = prompt_queries._sum_queries
    model, sums = made()
    batch, graph = torch.ones(TOKENS, HEADS, DIM), emulated_graphs.Graph()
    with emulated_graphs.graph(graph):
        run(model, batch)
    sums.arm(SumPlan([(sums.acquire(), 0, 4)]))
    graph.replay()
    assert not sums.counts.any()


def test_a_slot_is_empty_for_the_next_request() -> None:
    model, sums = made(capacity=1)
    slot = sums.acquire()
    with pytest.raises(RuntimeError, match="all 1 sums"):
        sums.acquire()
    sums.arm(SumPlan([(slot, 0, 4)]))
    run(model, torch.ones(4, HEADS, DIM))
    sums.disarm()
    assert sums.counts.any()
    sums.release(slot)
    assert sums.acquire() == slot
    assert not any(tensor.any() for tensor in (sums.counts, *sums.sums, *sums.products))
    moments = sums.at(0, slot)
    assert not moments.mean.any()
    assert not moments.covariance.any()


class Projection(nn.Module):
    """In the place of vLLM's projection to queries, keys and values, whose answer is a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)) * 1000)

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        """Hidden states and the bias."""
        return hidden + self.bias, None


def test_a_large_bias_does_not_drown_what_varies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queries are the first columns of the projection; keys and values behind them are left out."""
    monkeypatch.setattr("vllm.model_executor.layers.linear.QKVParallelLinear", Projection)
    model = nn.ModuleDict({"self_attn": nn.ModuleDict({"qkv_proj": Projection()})})
    layer = SimpleNamespace(layer_name="self_attn.attn", num_heads=HEADS, head_size=DIM)
    sums = PromptQueries(model, [layer], 1, TOKENS, CPU, key())
    assert sums.hooked
    hidden = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1)) / 64
    projection: Any = model["self_attn"]["qkv_proj"]
    sums.arm(SumPlan([(sums.acquire(), 0, 16)]))
    projection(hidden)
    columns = HEADS * DIM
    exact = (hidden.double() + projection.bias.double())[:, :columns].view(16, HEADS, DIM)
    apart = exact - exact.mean(dim=0)
    moments = sums.at(0, 0)
    torch.testing.assert_close(moments.mean.double(), exact.mean(dim=0), rtol=1e-6, atol=1e-4)
    covariance = torch.einsum("nhd,nhe->hde", apart, apart) / 16
    torch.testing.assert_close(moments.covariance.double(), covariance, rtol=1e-2, atol=1e-6)


def test_a_model_whose_queries_come_from_elsewhere_is_not_hooked() -> None:
    model = nn.ModuleDict({"self_attn": nn.ModuleDict({"wqkv": nn.Linear(2, 2)})})
    layer = SimpleNamespace(layer_name="self_attn.attn", num_heads=HEADS, head_size=DIM)
    assert not PromptQueries(model, [layer], 1, TOKENS, CPU, key()).hooked
