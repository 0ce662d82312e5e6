"""CUDA graphs of decode steps that observe nothing, captured beside those that do.

A graph runs all of its kernels in every replay. One that serves every step has to hold those that keep queries, norms
and coordinates, five small ones per layer in a model with all of them, which a step without a KV budget does not need.
Which graph a step replays is decided when it is run, by what would decide in an eager step; vLLM's choice of the shape
stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ...vllm_compat import cuda_graphs


def decode_sizes(sizes: Sequence[int], tokens: int) -> set[int]:
    """Those of the captured sizes that decode steps are padded to.

    Args:
        sizes: tokens of the captured graphs.
        tokens: most tokens of a decode step.
    """
    return {size for size in sizes if all(smaller < tokens for smaller in sizes if smaller < size)}


class PlainSteps:
    """What a runner knows of the step at hand: whether anything of it is observed.

    Attributes:
        kv_store, kv_sums, kv_gates, kv_saliency, kv_coordinates: what keeps something of a step's tokens; None where it
            is not there.
    """

    kv_store: Any
    kv_sums: Any
    kv_gates: Any
    kv_saliency: Any
    kv_coordinates: Any
    model: Any

    def _record_slots(self, armed: bool) -> None:
        """Whether the coming step records what is kept per slot, which is read of prompts only."""
        for store in (self.kv_saliency, self.kv_coordinates):
            if store is not None:
                store.armed = armed

    def _observes(self) -> bool:
        """Whether the step at hand keeps anything of its tokens, or moves the positions of kept visual tokens."""
        stores = (self.kv_store, self.kv_sums, self.kv_gates, self.kv_saliency, self.kv_coordinates)
        armed = any(store is not None and store.armed for store in stores)
        return armed or bool(getattr(self.model, "moves_positions", False))

    @contextmanager
    def _capturing_plain(self) -> Iterator[None]:
        """Forward passes meanwhile observe nothing, and graphs that are captured hold nothing that would."""
        self._record_slots(False)
        try:
            with cuda_graphs.plain():
                yield
        finally:
            # As after every step.
            self._record_slots(True)


class PlainGraphs:
    """In front of the class that holds Runner V2's graphs; `capture_plain_graphs` puts it there.

    Attributes:
        plain: graphs of plain steps, by the same descriptors as the others.
        observes: whether the step at hand observes anything.
        capturing_plain: context in which a forward pass observes nothing and can be captured so.
    """

    plain: dict[Any, Any]
    observes: Callable[[], bool]
    capturing_plain: Callable[[], AbstractContextManager[None]]
    # vLLM's manager.
    graphs: dict[Any, Any]
    decode_query_len: int
    max_num_reqs: int
    _capture_descs: dict[Any, list[Any]]
    _capture_mem_samples: list[int] | None

    def capture(self, *args: Any, **kwargs: Any) -> None:
        """Capture vLLM's graphs, then the plain ones into the same memory pool."""
        super().capture(*args, **kwargs)  # type: ignore[misc]
        graphs, every = self.graphs, self._capture_descs
        plain = self._plain_descriptors()
        if not plain:
            return
        self.graphs, self._capture_descs = self.plain, plain
        try:
            with self.capturing_plain():
                super().capture(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.graphs, self._capture_descs = graphs, every
        if self._capture_mem_samples is not None:
            # vLLM profiles by a few captures, and multiplies by the number of these.
            self._capture_descs = {mode: [*descs, *plain.get(mode, ())] for mode, descs in every.items()}

    def _plain_descriptors(self) -> dict[Any, list[Any]]:
        """The full graphs that decode steps may replay, by mode."""
        full = {mode: descs for mode, descs in self._capture_descs.items() if mode.name == "FULL"}
        sizes = decode_sizes(
            [desc.num_tokens for descs in full.values() for desc in descs], self.max_num_reqs * self.decode_query_len
        )
        plain = {mode: [desc for desc in descs if desc.num_tokens in sizes] for mode, descs in full.items()}
        return {mode: descs for mode, descs in plain.items() if descs}

    def run_fullgraph(self, desc: Any) -> Any:
        """Replay the plain graph where the step observes nothing."""
        if desc not in self.plain or self.observes():
            return super().run_fullgraph(desc)  # type: ignore[misc]
        graphs, self.graphs = self.graphs, self.plain
        try:
            return super().run_fullgraph(desc)  # type: ignore[misc]
        finally:
            self.graphs = graphs

    def release_graphs(self) -> None:
        """Drop the captured graphs, the plain ones too."""
        super().release_graphs()  # type: ignore[misc]
        self.plain.clear()


def capture_plain_graphs(
    manager: Any, observes: Callable[[], bool], capturing_plain: Callable[[], AbstractContextManager[None]]
) -> None:
    """Put `PlainGraphs` in front of the class of a manager that has captured nothing yet."""
    cls = type(manager)
    manager.__class__ = type(f"Plain{cls.__name__}", (PlainGraphs, cls), {"__module__": __name__})
    manager.plain, manager.observes, manager.capturing_plain = {}, observes, capturing_plain
