"""Graphs of steps that observe nothing: which are captured, when they are replayed, what profiling counts of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import emulated_graphs
from vllm_prune.kv.runners.plain_graphs import PlainSteps, capture_plain_graphs, decode_sizes
from vllm_prune.kv.runners.v1 import CompactingV1
from vllm_prune.kv.runners.v2 import CompactingV2
from vllm_prune.vllm_compat import cuda_graphs

STORES = ("kv_store", "kv_sums", "kv_gates", "kv_saliency", "kv_coordinates")
OFF = SimpleNamespace(additional_config={"vllm_prune": {"plain_graphs": False}})
ON = SimpleNamespace(additional_config={})


class Descriptor(SimpleNamespace):
    """Shape of a graph."""

    def __hash__(self) -> int:
        return hash(self.num_tokens)


class Manager:
    """As vLLM's: captures what its lists name, a few of them while memory is profiled, and replays by descriptor."""

    def __init__(self, sizes: tuple[int, ...], samples: list[int] | None = None) -> None:
        descriptors = [Descriptor(num_tokens=size) for size in sizes]
        self._capture_descs: dict[Any, list[Any]] = {Mode("PIECEWISE"): descriptors, Mode("FULL"): descriptors}
        self.graphs: dict[Any, str] = {}
        self.max_num_reqs, self.decode_query_len, self._capture_mem_samples = 4, 1, samples
        self.plain_now, self.replayed = False, list[str]()

    def capture(self) -> None:
        for mode, descriptors in self._capture_descs.items():
            for one in descriptors if self._capture_mem_samples is None else descriptors[:2]:
                if mode.name == "FULL":
                    assert one not in self.graphs
                    self.graphs[one] = f"{'plain' if self.plain_now else 'observing'} {one.num_tokens}"
                    if self._capture_mem_samples is not None:
                        self._capture_mem_samples.append(one.num_tokens)

    def run_fullgraph(self, desc: Any) -> None:
        self.replayed.append(self.graphs[desc])

    def release_graphs(self) -> None:
        self.graphs.clear()

    def full(self) -> list[Any]:
        """Descriptors of full graphs."""
        return self._capture_descs[Mode("FULL")]


class Mode(str):
    """A mode of graphs."""

    @property
    def name(self) -> str:
        """Its name."""
        return str(self)


def prepared(manager: Manager) -> tuple[Any, list[bool]]:
    """A manager that has captured, and the list whose last item says whether the step at hand observes."""
    observing: list[bool] = [True]

    @contextmanager
    def plain() -> Iterator[None]:
        manager.plain_now = True
        yield
        manager.plain_now = False

    capture_plain_graphs(manager, lambda: observing[-1], plain)
    manager.capture()
    return manager, observing


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((1, 2, 4, 8), {1, 2, 4}), ((1, 2, 3, 8, 16), {1, 2, 3, 8}), ((16, 8), {8}), ((), set())],
)
def test_sizes_of_decode_steps_are_those_that_up_to_four_tokens_are_padded_to(
    sizes: tuple[int, ...], expected: set[int]
) -> None:
    assert decode_sizes(sizes, 4) == expected


def test_decode_graphs_are_captured_twice_and_the_step_decides() -> None:
    manager, observing = prepared(Manager((16, 4, 2)))
    sixteen, four, two = manager.full()
    for value in (True, False):
        observing.append(value)
        for desc in (sixteen, four, two):
            manager.run_fullgraph(desc)
    # Prompts fill the largest; nothing is captured twice for them.
    assert manager.replayed == ["observing 16", "observing 4", "observing 2", "observing 16", "plain 4", "plain 2"]
    assert list(manager.graphs.values()) == ["observing 16", "observing 4", "observing 2"]
    manager.release_graphs()
    manager.capture()
    manager.run_fullgraph(two)
    assert manager.replayed[-1] == "plain 2"


def test_profiled_memory_is_that_of_all_graphs() -> None:
    samples: list[int] = []
    manager, _ = prepared(Manager((16, 4, 2), samples))
    assert samples == [16, 4, 4, 2]
    # vLLM takes the sum of the samples off what it measured, and adds one graph's memory as often as this list is long.
    assert len(manager.full()) == 5


@pytest.mark.parametrize("name", [*STORES, "model"])
def test_a_step_that_keeps_anything_is_not_plain(name: str) -> None:
    step: Any = PlainSteps()
    step.model = SimpleNamespace(moves_positions=name == "model")
    for store in STORES:
        setattr(step, store, SimpleNamespace(armed=store == name))
    assert step._observes()
    if name != "model":
        setattr(step, name, None)
        assert not step._observes()


def test_plain_captures_record_no_observation_and_steps_after_them_do(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated_graphs.install(monkeypatch)
    monkeypatch.setattr(emulated_graphs.STATE, "active", True)
    step: Any = PlainSteps()
    step.kv_saliency, step.kv_coordinates = SimpleNamespace(armed=True), None
    assert cuda_graphs.capturing()

    def fail() -> None:
        with step._capturing_plain():
            assert not step.kv_saliency.armed
            assert not cuda_graphs.capturing()
            raise ValueError("capture failed")

    with pytest.raises(ValueError, match="capture failed"):
        fail()
    assert cuda_graphs.capturing()
    assert step.kv_saliency.armed


def test_the_operator_can_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.compilation.cuda_graph import CUDAGraphWrapper
    from vllm.config import CUDAGraphMode
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "get_global_graph_pool", lambda self: "pool", raising=False)
    for config, plain in ((OFF, False), (ON, True)):
        config.compilation_config = None
        second: Any = object.__new__(CompactingV2)
        second.vllm_config, second.cudagraph_manager = config, Manager((4,))
        second.capture_plain_graphs()
        assert hasattr(second.cudagraph_manager, "plain") is plain
        first: Any = object.__new__(CompactingV1)
        first.vllm_config = config
        first.model = CUDAGraphWrapper(torch.nn.Identity(), config, CUDAGraphMode.FULL)
        first.capture_plain_graphs()
        assert (first.kv_plain_model is not None) is plain
        # Without full graphs there is nothing to do.
        first.model = first.model.runnable
        first.capture_plain_graphs()
        assert first.kv_plain_model is None
