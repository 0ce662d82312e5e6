from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_prune.kv.signals import LayerSource, fields_of, offers


def compactor(
    saliency: bool = True,
    rotation: bool = True,
    coordinates: bool = True,
    moments: bool = False,
    gates: bool = False,
) -> Any:
    """The parts of a compactor that providers use."""
    norms = SimpleNamespace(at=lambda layer, slots: torch.stack([slots.float() + 100 * layer, -slots.float()]))
    store = SimpleNamespace(queries=lambda layer, window: ("queries", layer, window))
    rows = SimpleNamespace(logits=lambda queries, slots, scale: ("logits", queries, slots.tolist(), scale))
    layers = [SimpleNamespace(impl=SimpleNamespace(scale=0.5))] * 2
    return SimpleNamespace(
        saliency=norms if saliency else None,
        rotation=torch.ones(3, 4) if rotation else None,
        prompt_queries=SimpleNamespace(at=lambda layer, slot: ("moments", layer, slot)) if moments else None,
        gates=SimpleNamespace(exited=lambda layer, prompt: ("exited", layer, prompt)) if gates else None,
        coordinates=SimpleNamespace(at=lambda slots: slots.expand(3, -1)) if coordinates else None,
        store=store,
        rows=[rows, rows],
        layers=layers,
    )


def source(positions: dict[int, Any] | None = None, prompt: int = 2, **parts: bool) -> LayerSource:
    request: Any = SimpleNamespace(positions=positions or {}, prompt=prompt, sum_slot=5, gated="prompt")
    return LayerSource(compactor(**parts), 1, request, torch.tensor([5, 6]), [2, 3], heads=2)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, {"queries", "values", "saliency", "rotation", "coordinates"}),
        ({"saliency": False}, {"queries", "values", "rotation", "coordinates"}),
        ({"rotation": False, "saliency": False}, {"queries", "values", "coordinates"}),
    ],
)
def test_a_worker_offers_what_its_model_has(parts: dict[str, bool], expected: set[str]) -> None:
    assert offers(compactor(**parts)) == expected


def test_only_what_is_wanted_is_computed() -> None:
    assert fields_of((), source()) == {}
    assert fields_of({"values"}, source()) == {}
    queries = ("queries", 1, [2, 3])
    assert fields_of({"queries"}, source()) == {"queries": queries, "logits": ("logits", queries, [5, 6], 0.5)}
    assert set(fields_of({"queries", "rotation"}, source())) == {"queries", "logits", "rotation"}


def test_saliency_is_that_of_the_slots_before_the_first_compaction() -> None:
    saliency = fields_of({"saliency"}, source())
    assert saliency["saliency"].tolist() == [[105, 106], [105, 106]]
    assert saliency["normed_saliency"].tolist() == [[-5, -6], [-5, -6]]
    assert fields_of({"saliency"}, source(positions={1: torch.zeros(2, 2)})) == {}


def test_moments_are_those_of_the_slot() -> None:
    assert offers(compactor(moments=True)) - offers(compactor()) == {"moments"}
    assert fields_of({"moments"}, source(moments=True)) == {"moments": ("moments", 1, 5)}


def test_gates_are_asked_for_the_layer_and_the_prompt() -> None:
    assert offers(compactor(gates=True)) - offers(compactor()) == {"gates"}
    assert fields_of({"gates"}, source(gates=True)) == {"exited": ("exited", 1, "prompt")}


def test_coordinates_are_those_of_the_slots_before_the_first_compaction() -> None:
    assert fields_of({"coordinates"}, source())["coordinates"].tolist() == [[5, 6]] * 3
    one = LayerSource(compactor(), 1, source(prompt=1).request, torch.tensor([5, 9, 2]), torch.tensor([]), heads=2)
    assert fields_of({"coordinates"}, one)["coordinates"].tolist() == [[5, 6, 7]] * 3
    assert fields_of({"coordinates"}, source(positions={1: torch.zeros(2, 2)})) == {}
    assert fields_of({"coordinates"}, source(coordinates=False)) == {}
