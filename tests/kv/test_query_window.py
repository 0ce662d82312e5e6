"""The query store inside a CUDA graph: a replay observes the tokens of its own step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import emulated_graphs
from vllm_prune.kv.query_window import QueryStore, StepPlan

CPU = torch.device("cpu")
CAPACITY, TOKENS, HEADS, DIM = 6, 24, 2, 4
SCRATCH = CAPACITY


def stack(layers: int = 2) -> list[Any]:
    """Attention layers, whose answer is twice the query."""
    return [
        SimpleNamespace(
            num_heads=HEADS,
            head_size=DIM,
            dtype=torch.float32,
            impl=SimpleNamespace(forward=lambda layer, query, out: out.copy_(query * 2)),
        )
        for _ in range(layers)
    ]


class Model:
    """Layers one after the other, captured for a batch of a fixed size, as vLLM does."""

    def __init__(self, patches: pytest.MonkeyPatch, tokens: int) -> None:
        emulated_graphs.install(patches)
        self.layers, self.tokens = stack(), tokens
        self.store = QueryStore(self.layers, CAPACITY, TOKENS, CPU)
        self.hidden = torch.zeros(tokens, HEADS * DIM)
        self.graph = emulated_graphs.Graph()
        with emulated_graphs.graph(self.graph):
            self._forward()

    def _forward(self) -> None:
        query = self.hidden + 1
        for layer in self.layers:
            out = torch.empty_like(query)
            layer.impl.forward(layer, query, out)
            query = out

    def step(self, hidden: Tensor, plan: StepPlan, replay: bool) -> None:
        """One step of at most as many tokens as were captured; the rest is padding."""
        self.hidden[: len(hidden)] = hidden
        self.store.arm(plan)
        self.graph.replay() if replay else self._forward()
        self.store.disarm()

    def rows(self) -> list[Tensor]:
        """What the slots hold, per layer."""
        return [rows[:CAPACITY].clone() for rows in self.store.rows]


@st.composite
def steps(draw: Any) -> list[tuple[int, StepPlan]]:
    """Steps of a few tokens each, some of which are observed."""
    made = []
    for _ in range(draw(st.integers(1, 6))):
        count = draw(st.integers(1, TOKENS))
        observed = draw(st.lists(st.integers(0, count - 1), unique=True, max_size=min(count, CAPACITY)))
        made.append((count, StepPlan(observed, draw(st.permutations(range(CAPACITY)))[: len(observed)])))
    return made


@given(steps())
def test_replays_keep_what_eager_steps_keep(planned: list[tuple[int, StepPlan]]) -> None:
    with pytest.MonkeyPatch.context() as patches:
        eager, replayed = Model(patches, TOKENS), Model(patches, TOKENS)
        memory = [rows.data_ptr() for rows in (*replayed.store.rows, replayed.store.target)]
        expected = torch.zeros(CAPACITY, HEADS * DIM)
        source = torch.Generator().manual_seed(0)
        for count, plan in planned:
            hidden = torch.randn(count, HEADS * DIM, generator=source)
            eager.step(hidden, plan, False)
            replayed.step(hidden, plan, True)
            if plan.source:
                expected[plan.target] = hidden[plan.source] + 1
            for layer, (one, other) in enumerate(zip(eager.rows(), replayed.rows(), strict=True)):
                assert torch.equal(one.view(CAPACITY, -1), expected * 2**layer)
                assert torch.equal(one, other)
        assert (replayed.store.target == SCRATCH).all()
        assert [rows.data_ptr() for rows in (*replayed.store.rows, replayed.store.target)] == memory


def test_a_replay_that_nobody_armed_observes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dummy steps of idle ranks are replayed, too."""
    model = Model(monkeypatch, 4)
    model.step(torch.ones(4, HEADS * DIM), StepPlan([0, 2], [1, 3]), True)
    before = model.rows()
    model.hidden.fill_(7)
    model.graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(before, model.rows(), strict=True))


def test_tokens_behind_an_earlier_longer_step_are_scratch_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(monkeypatch, TOKENS)
    model.step(torch.ones(8, HEADS * DIM), StepPlan([7], [5]), True)
    model.store.arm(StepPlan([0], [0]))
    assert model.store.target.tolist() == [0] + [SCRATCH] * (TOKENS - 1)


def test_a_graph_captured_without_the_copy_keeps_stale_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what is decided in Python does not reach a replay."""
    with monkeypatch.context() as patches:
        emulated_graphs.install(patches)
        patches.setattr("vllm_prune.kv.query_window.cuda_graphs", SimpleNamespace(capturing=lambda: False))
        patches.setattr(emulated_graphs, "install", lambda patches: None)
        model = Model(patches, 4)
        model.step(torch.ones(4, HEADS * DIM), StepPlan([0, 2], [1, 3]), True)
    assert not any(rows.any() for rows in model.rows())


def test_an_unarmed_eager_step_launches_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(monkeypatch, 4)
    for rows in model.store.rows:
        monkeypatch.setattr(rows, "index_copy_", None, raising=False)
    model.step(torch.ones(4, HEADS * DIM), StepPlan(), False)
    with pytest.raises(TypeError):
        model.step(torch.ones(4, HEADS * DIM), StepPlan([0], [0]), False)
