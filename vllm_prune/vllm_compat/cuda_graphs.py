"""Whether kernels are launched, or recorded into a CUDA graph."""

from __future__ import annotations

import torch


def capturing() -> bool:
    """Whether the kernels that this thread launches now are recorded into a CUDA graph instead of run.

    A replay launches those kernels again without any Python between them, so what a step decides in Python has to
    reach them through memory whose address they know.
    """
    # A build without CUDA has no such function to call.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
