"""Observation, scoring and compaction never make the host wait for the device, so that it can run ahead of it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.emulated_device import DEVICE, EmulatedDevice, HostSync, on_device, on_host, permissions
from tests.gate_weights import rigged
from tests.kv.keys import key
from vllm_prune.budget.kv import KvSpec
from vllm_prune.catalogue import KV
from vllm_prune.kv import saliency as saliency_module
from vllm_prune.kv.cache import Blocks, StridedRows
from vllm_prune.kv.cached_request import Stores, track
from vllm_prune.kv.commands import Compaction
from vllm_prune.kv.compaction import Compactor
from vllm_prune.kv.coordinates import CoordinateStore
from vllm_prune.kv.gates import VisualGates
from vllm_prune.kv.lengths import CacheLengths
from vllm_prune.kv.prompt_queries import PromptQueries
from vllm_prune.kv.query_window import QueryStore, StepPlan
from vllm_prune.kv.saliency import SaliencyStore
from vllm_prune.kv.token_sums import SumPlan
from vllm_prune.kv.window_slots import WindowLimits
from vllm_prune.visual.strategies._trained import LanguageShape, Network

from .test_lengths import Batch

LAYERS, HEADS, GROUP, DIM, BLOCK, BLOCKS, PROMPT, WINDOW, BUFFER = 2, 2, 2, 16, 8, 32, 60, 4, 8
HIDDEN = 24
SOURCE, MIDDLE, TARGET = (9, 4, 2, 11, 1, 8, 5, 3), (13, 14, 15, 16), (20, 21, 22, 23)

CASES = [
    *((name, "{}") for name in KV.names()),
    ("gui_kv", '{"basis": "stride"}'),
    ("gui_kv", '{"norm_source": "value"}'),
    ("expected_attention", '{"queries": "prompt"}'),
]
CASES += [("gui_kv", '{"selection": "per_layer", "protect": "text"}'), ("snapkv", '{"mode": "max"}')]
CASES += [(name, '{"probe": "activation"}') for name in KV.names() if "queries" in KV.strategy_class(name).needs]
BY_NATURE = [("gui_kv", '{"basis": "gram"}')]
"""An eigendecomposition reads on the host whether it has converged; PyTorch has none that does not."""


class Worker:
    """The part of a worker that observes and compacts, on the CPU or on the emulated device."""

    def __init__(self, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = device
        source = torch.Generator().manual_seed(0)
        self.layers = [
            SimpleNamespace(
                kv_cache=self.put(torch.randn(BLOCKS, HEADS, BLOCK, 2 * DIM, generator=source)),
                num_heads=HEADS * GROUP,
                num_kv_heads=HEADS,
                head_size=DIM,
                dtype=torch.float32,
                impl=SimpleNamespace(scale=DIM**-0.5, forward=lambda layer, query: query),
            )
            for _ in range(LAYERS)
        ]
        self.store = QueryStore(self.layers, 16, 32, device)
        self.saliency = self._saliency(monkeypatch)
        angles = torch.arange(256)[:, None] * 10000.0 ** (-torch.arange(DIM // 2) / (DIM // 2))
        rotation = self.put(torch.cat([angles.cos(), angles.sin()], dim=1))
        rows = [StridedRows(layer) for layer in self.layers]
        self.compactor = Compactor(self.layers, rows, self.store, self.saliency, rotation, BLOCK)
        self.compactor.coordinates = self._coordinates()
        self.sums = self.compactor.prompt_queries = self._sums()
        self.gates = self.compactor.gates = self._gates()
        self.stores = Stores(self.store, self.sums, self.gates)

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor where this worker has its own."""
        return on_device(tensor) if self.device == DEVICE else tensor

    def _saliency(self, monkeypatch: pytest.MonkeyPatch) -> SaliencyStore:
        norms = nn.ModuleList(nn.ModuleDict({"input_layernorm": nn.Identity()}) for _ in range(LAYERS))
        names = [f"layers.{index}.self_attn.attn" for index in range(LAYERS)]
        model = nn.ModuleDict({"model": nn.ModuleDict({"layers": norms})})
        store = SaliencyStore(model, [f"model.{name}" for name in names], self.device, key())
        assert store.hooked
        store.norms = torch.zeros(2, LAYERS, BLOCKS * BLOCK + 1, device=self.device)
        self.step = SimpleNamespace(slot_mapping={})
        monkeypatch.setattr("vllm.forward_context.get_forward_context", lambda: self.step)
        monkeypatch.setattr("vllm.forward_context.is_forward_context_available", lambda: True)
        return store

    def _coordinates(self) -> CoordinateStore:
        model = nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList([nn.Identity()])})})
        store = CoordinateStore(model, self.saliency.names[0], self.device, key())
        assert store.hooked
        store.places = torch.zeros(3, BLOCKS * BLOCK + 1, dtype=torch.int32, device=self.device)
        return store

    def _sums(self) -> PromptQueries:
        attention = [nn.ModuleDict({"q_norm": nn.Identity()}) for _ in self.layers]
        for index, layer in enumerate(self.layers):
            layer.layer_name = f"{index}.attn"
        sums = PromptQueries(nn.ModuleList(attention), self.layers, 2, 32, self.device, key())
        assert sums.hooked
        return sums

    def _gates(self) -> VisualGates:
        """One that lets visual tokens be left out behind the first layer."""
        tensors = {name: self.put(tensor) for name, tensor in rigged((True, True), HIDDEN).items()}
        network = Network(tensors, LanguageShape(HIDDEN, 2, 1, layers=LAYERS))
        norms = nn.ModuleList(nn.ModuleDict({"input_layernorm": nn.Identity()}) for _ in range(LAYERS))
        model = nn.ModuleDict({"model": nn.ModuleDict({"layers": norms})})
        gates = VisualGates(model, self.saliency.names, network, 1, 32, self.device, key())
        assert gates.hooked
        return gates

    def prefill(self, request: Any, slots: Tensor) -> None:
        """Compute the prompt's last 32 tokens; the last window is observed, padding has slot -1."""
        source = torch.Generator().manual_seed(1)
        tokens = range(PROMPT - 32, PROMPT)
        self.observe(request, tokens[-WINDOW:], 32 - WINDOW, source)
        mapping = torch.cat([slots[-30:], torch.full((2,), -1)])
        self.step.slot_mapping = {name: self.put(mapping) for name in self.saliency.names}
        for index in range(LAYERS):
            hidden, normed = self.put(torch.randn(2, 32, HIDDEN, generator=source))
            self.saliency.record(hidden, normed, index)
        summed = request.summed(PROMPT - 32, PROMPT)
        if summed:
            start = summed.start - PROMPT + 32
            self.sums.arm(SumPlan([(request.sum_slot, start, start + len(summed))]))
            for index in range(LAYERS):
                self.sums.add(self.put(torch.randn(32, HEADS * GROUP * DIM, generator=source)), index)
            self.sums.disarm()
        if request.gated is not None:
            self.gates.arm(SumPlan([*request.gated.parts(PROMPT - 32, 32, 0)]))
            self.gates.add(self.put(torch.randn(32, HIDDEN, generator=source)), 0)
            self.gates.disarm()
        # Every image is four visual tokens wide; the last 32 tokens hold the last two.
        places = torch.arange(32).repeat(3, 1)
        places[1:] += torch.stack([torch.arange(32) % 12 // 4, torch.arange(32) % 4])
        store = self.compactor.coordinates
        assert store is not None
        store.record(self.put(places))

    def observe(self, request: Any, positions: range, first: int, source: torch.Generator) -> None:
        """A step whose tokens from `first` on are at those positions."""
        query = self.put(torch.randn(32, HEADS * GROUP * DIM, generator=source))
        targets = request.slots_of(positions)
        self.store.arm(StepPlan(list(range(first, first + len(targets))), targets))
        for layer in self.layers:
            layer.impl.forward(layer, query)
        self.store.disarm()


def two_compactions(device: torch.device, name: str, options: str, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the first and the second compaction of a request keep, per layer, and the caches afterwards."""
    worker = Worker(device, monkeypatch)
    spec = KvSpec(name, options, keep="0.5", window=WINDOW, buffer=BUFFER)
    shown = [SimpleNamespace(mm_position=SimpleNamespace(offset=at, length=12, is_embed=None)) for at in (3, 20, 40)]
    limits = WindowLimits(WINDOW, 16, 1, 2)
    request = track(spec, list(range(PROMPT)), shown, worker.stores, limits)
    slots = (torch.tensor(SOURCE)[:, None] * BLOCK + torch.arange(BLOCK)).flatten()[:PROMPT]
    worker.prefill(request, slots)
    worker.compactor.run(Compaction("a", PROMPT, PROMPT // 2, 0, SOURCE, MIDDLE), request)
    first = list(request.positions.values())
    rows = PROMPT // 2 + BUFFER + 1
    worker.observe(request, range(PROMPT + BUFFER + 1 - WINDOW, PROMPT + BUFFER + 1), 0, torch.Generator())
    command = Compaction("a", rows, PROMPT // 2, PROMPT // 2, (*MIDDLE, 17), TARGET)
    worker.compactor.run(command, request)
    caches = [layer.kv_cache for layer in worker.layers]
    # The scratch row takes whichever of its tokens comes last.
    queries = [rows[:-1] for rows in worker.store.rows]
    return [on_host(one) for one in (*first, *request.positions.values(), *caches, *queries)]


@torch.inference_mode()
@pytest.mark.parametrize(("name", "options"), CASES)
def test_no_strategy_waits_and_each_keeps_what_it_keeps_on_the_cpu(
    name: str, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = two_compactions(torch.device("cpu"), name, options, monkeypatch)
    with EmulatedDevice():
        kept = two_compactions(DEVICE, name, options, monkeypatch)
    assert len(kept) == 4 * LAYERS
    for one, other in zip(kept, expected, strict=True):
        assert torch.equal(one, other)


@torch.inference_mode()
@pytest.mark.parametrize(("name", "options"), [*CASES, *BY_NATURE])
def test_vllms_own_check_lets_only_these_wait(name: str, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = permissions(monkeypatch, "vllm_prune.kv.compaction.gpu_sync_allowed")
    two_compactions(torch.device("cpu"), name, options, monkeypatch)
    # Layers of a strategy that looks at heads apart come together on a CPU.
    calls = 2 if KV.create(name, json.loads(options)).by_head() else 2 * LAYERS
    assert allowed == [True] * calls * ((name, options) in BY_NATURE)


@torch.inference_mode()
@pytest.mark.parametrize(("name", "options"), BY_NATURE)
def test_what_waits_by_nature_is_what_is_listed(name: str, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmulatedDevice(), pytest.raises(HostSync, match="eigh"):
        two_compactions(DEVICE, name, options, monkeypatch)


@torch.inference_mode()
@pytest.mark.parametrize("fault", ["list index", "tensor built on the device"])
def test_a_wait_would_be_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "list index":
        monkeypatch.setattr(QueryStore, "queries", lambda self, index, slots: self.rows[index][[0, 1, 2, 3]].float())
    else:
        monkeypatch.setattr(Blocks, "of", classmethod(_built_on_the_device))
    with EmulatedDevice(), pytest.raises(HostSync):
        two_compactions(DEVICE, "snapkv", "{}", monkeypatch)


def _built_on_the_device(cls: type[Blocks], ids: tuple[int, ...], rows: int, size: int, device: torch.device) -> Blocks:
    starts = torch.tensor(ids, device=device) * size
    return cls(ids, size, (starts[:, None] + torch.arange(size, device=device)).flatten()[:rows])


@torch.inference_mode()
def test_lengths_of_a_step_do_not_wait() -> None:
    """On Runner V2; V1 shortens the same tensors in the same way."""

    def prepared(put: Any, device: torch.device) -> list[Tensor]:
        buffer, positions = put(torch.tensor([50, 73, 0], dtype=torch.int32)), put(torch.arange(6))
        bound, counts = torch.tensor([50, 73, 0], dtype=torch.int32), np.array([1, 3], dtype=np.int32)
        lengths = CacheLengths(device)
        step = lengths.begin(Batch(buffer, bound, positions, counts), np.array([0, 20], dtype=np.int32))
        attended = lengths.attended(step)
        parts = (
            step.seq_lens,
            attended.seq_lens,
            attended.seq_lens_cpu_upper_bound,
            lengths.slots_from(step).positions,
        )
        return [on_host(one) for one in parts]

    expected = prepared(torch.clone, torch.device("cpu"))
    with EmulatedDevice():
        found = prepared(on_device, DEVICE)
    assert expected[1].tolist() == [50, 53, 0]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_norms_are_recorded_while_graphs_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is not armed records nothing, unless what it does becomes part of a graph."""
    worker = Worker(torch.device("cpu"), monkeypatch)
    store, seen = worker.saliency, list[int]()
    monkeypatch.setattr(SaliencyStore, "record", lambda self, hidden, normed, layer: seen.append(layer))
    monkeypatch.setitem(saliency_module._STORES, store.key, store)
    for armed, capturing in ((False, False), (False, True), (True, False)):
        store.armed = armed
        monkeypatch.setattr("vllm_prune.vllm_compat.cuda_graphs.capturing", lambda capturing=capturing: capturing)
        hidden = torch.zeros(1, 4)
        saliency_module._record_norm(hidden, hidden, store.anchor, store.key, 2 * armed + capturing)
    assert seen == [1, 2]
