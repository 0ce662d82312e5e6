"""Coordinates per slot: recorded as attention gets them, also by replays of a CUDA graph."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests import emulated_graphs
from tests.kv.keys import key
from vllm_prune.kv import coordinates
from vllm_prune.kv.coordinates import CoordinateStore

CPU, NAME, SLOTS = torch.device("cpu"), "model.layers.0.self_attn.attn", 12


class Layer(nn.Module):
    """A decoder layer that is called as vLLM's models call theirs."""

    def forward(self, positions: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Nothing is done with the positions."""
        return hidden


@pytest.fixture
def model() -> nn.Module:
    return nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList([Layer(), Layer()])})})


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The forward context; `slot_mapping` says which slots a step writes."""
    context = SimpleNamespace(slot_mapping={})
    monkeypatch.setattr("vllm.forward_context.get_forward_context", lambda: context)
    monkeypatch.setattr("vllm.forward_context.is_forward_context_available", lambda: True)
    return context


@pytest.mark.parametrize("named", [False, True])
def test_the_first_layer_records_what_it_is_called_with(model: nn.Module, step: SimpleNamespace, named: bool) -> None:
    store = CoordinateStore(model, NAME, CPU, key())
    store.allocate(SLOTS)
    positions, hidden = torch.arange(12).view(3, 4), torch.zeros(4, 2)
    step.slot_mapping = {NAME: torch.tensor([7, 2, 9, -1])}
    layer = model["model"]["layers"][0]
    layer(positions=positions, hidden=hidden) if named else layer(positions, hidden)
    assert store.at(torch.tensor([9, 7, 2])).tolist() == [[2, 0, 1], [6, 4, 5], [10, 8, 9]]
    assert store.places is not None
    assert not store.places[:, [0, 1, 3, 4, 5, 6, 8, 10, 11]].any()
    before = store.places.clone()
    model["model"]["layers"][1](positions + 5, hidden)
    layer(positions[0] + 5, hidden)
    store.armed = False
    layer(positions + 5, hidden)
    assert torch.equal(store.places, before)
    store.close()
    store.armed = True
    layer(positions + 5, hidden)
    assert store.places is None


def test_a_merged_token_is_recorded_at_its_cell(model: nn.Module, step: SimpleNamespace) -> None:
    """What attention rotates it by is a row of the rotary table that stands for several positions."""
    store = CoordinateStore(model, NAME, CPU, key())
    store.allocate(SLOTS)
    step.slot_mapping = {NAME: torch.tensor([7, 2, 9, -1])}
    cells = torch.arange(12).view(3, 4)
    object.__setattr__(model, "cell_positions", cells)
    handed = cells.clone()
    handed[:, 1] = 1000
    model["model"]["layers"][0](handed, torch.zeros(4, 2))
    assert torch.equal(store.at(torch.tensor([7, 2, 9])), cells[:, :3])


def test_a_model_without_such_layers_is_not_hooked(model: nn.Module) -> None:
    assert not CoordinateStore(model, "model.blocks.0.attn", CPU, key()).hooked


def test_replays_record_the_step_at_hand(
    model: nn.Module, step: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulated_graphs.install(monkeypatch)
    store = CoordinateStore(model, NAME, CPU, key())
    store.allocate(SLOTS)
    positions, slots = torch.zeros(3, 4, dtype=torch.int64), torch.full((4,), -1)
    step.slot_mapping, graph = {NAME: slots}, emulated_graphs.Graph()
    store.armed = False
    with emulated_graphs.graph(graph):
        # What the layer's hook calls; outside a capture a store that is not armed records nothing.
        coordinates._record_coordinates(positions, store.anchor, store.key)
    assert store.places is not None
    memory = store.places.data_ptr()
    for offset in (1, 5):
        positions.copy_(torch.arange(12).view(3, 4) + offset)
        slots.copy_(torch.tensor([offset, offset + 1, offset + 2, -1]))
        graph.replay()
        assert torch.equal(store.at(slots[:3]), positions[:, :3])
    assert store.places.data_ptr() == memory
