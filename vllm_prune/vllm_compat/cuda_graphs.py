"""Whether kernels are launched, or recorded into a CUDA graph, and whether that graph is one of plain steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_plain = False


def capturing() -> bool:
    """Whether kernels that some steps need are to be recorded into a CUDA graph, whatever the step at hand needs.

    A replay launches those kernels again without any Python between them, so what a step decides in Python has to
    reach them through memory whose address they know. False while `plain` graphs are captured.
    """
    return not _plain and stream_capturing()


def stream_capturing() -> bool:
    """Whether the kernels that this thread launches now are recorded into a CUDA graph instead of run."""
    # A build without CUDA has no such function to call.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


@contextmanager
def plain() -> Iterator[None]:
    """Graphs that are captured meanwhile hold the kernels that every step needs, and no other."""
    global _plain
    _plain = True
    try:
        yield
    finally:
        _plain = False
