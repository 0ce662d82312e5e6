"""CUDA graphs on the CPU: what a replay does, and what it does not.

A capture records every operator that reaches PyTorch's dispatcher (kernels, so to say) with the very tensors that it
was given. A replay runs those operators again, on those tensors, and writes into the tensors that they returned. No
Python between them runs. What would make the host wait for the device raises while capturing, as it does on CUDA.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .emulated_device import WAITING

PYTHON_OPERATORS: dict[str, Callable[..., Any]] = {}
"""Custom operators whose body is Python: it runs at the capture only, and launches kernels that are recorded."""


class Capture:
    """Whether kernels are recorded at the moment, how often graphs have been replayed, and which was the last."""

    def __init__(self) -> None:
        self.active = False
        self.replays = 0
        self.last: Graph | None = None


STATE = Capture()


class Recorder(TorchDispatchMode):
    """Runs operators, and remembers them.

    Attributes:
        operators: each with its arguments, its result, and which tensors of the result have memory of their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[Any, Any, dict[str, Any], Any, list[bool]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator; one that is made of others in parts."""
        kwargs, name = kwargs or {}, func._schema.name
        if name in WAITING:
            raise RuntimeError(f"{name} waits for the device: operation not permitted when stream is capturing")
        with self:
            if name in PYTHON_OPERATORS:
                return PYTHON_OPERATORS[name](*args, **kwargs)
            parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        inputs = {_memory(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        made = [
            isinstance(one, Tensor) and bool(one.numel()) and _memory(one) not in inputs for one in tree_leaves(result)
        ]
        self.operators.append((func, args, kwargs, result, made))
        return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Graph:
    """In the place of `torch.cuda.CUDAGraph`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.recorder = Recorder()

    def capture_begin(self, pool: Any = None, **_: Any) -> None:
        """Start to record."""
        STATE.active = True
        self.recorder.__enter__()

    def capture_end(self) -> None:
        """Stop recording."""
        self.recorder.__exit__(None, None, None)
        STATE.active = False

    def replay(self) -> None:
        """Run what was recorded, in place."""
        STATE.replays += 1
        STATE.last = self
        for func, args, kwargs, result, made in self.recorder.operators:
            again = func(*args, **kwargs)
            for before, after, own in zip(tree_leaves(result), tree_leaves(again), made, strict=True):
                if own:
                    before.copy_(after)


@contextlib.contextmanager
def graph(graph: Graph, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
    """In the place of `torch.cuda.graph`."""
    graph.capture_begin(pool)
    try:
        yield
    finally:
        graph.capture_end()


def install(patches: pytest.MonkeyPatch) -> None:
    """Put the emulation in the place of CUDA's graphs, until the patches are undone."""
    patches.setattr(torch.cuda, "CUDAGraph", Graph)
    patches.setattr(torch.cuda, "graph", graph)
    patches.setattr(torch.cuda, "is_current_stream_capturing", lambda: STATE.active)
    patches.setattr("vllm_prune.vllm_compat.cuda_graphs.stream_capturing", lambda: STATE.active)
