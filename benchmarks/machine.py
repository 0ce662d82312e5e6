"""What a result says of the machine that it was measured on, and where committed results lie."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
QUIET_SECONDS = 3.0
"""Pause before a measurement: an engine polls for a while after its last request, on cores that both servers share."""
QUICK_QUIET_SECONDS = 1.5
"""The least that is longer than the second for which vLLM's worker polls."""
QUIET_ON_GPU = 0.3


def has_cuda() -> bool:
    """Whether PyTorch sees a CUDA device."""
    import torch

    return bool(torch.cuda.is_available())


def quiet_seconds() -> float:
    """Pause before a measurement."""
    return QUIET_ON_GPU if has_cuda() else QUIET_SECONDS


def hardware() -> dict[str, Any]:
    """Machine and versions of a result."""
    import torch
    import vllm

    import vllm_prune

    device = torch.cuda.get_device_name() if has_cuda() else f"{os.cpu_count()} cores of {_processor()}"
    return {"device": device, "python": platform.python_version(), "torch": torch.__version__, "vllm": vllm.__version__,
            "vllm-prune": vllm_prune.__version__}  # fmt: skip


def command_line(module: str) -> str:
    """The command that a result comes from, without the places of files on this machine.

    Args:
        module: that was run.
    """
    return " ".join(["python -m", module, *map(_placeless, sys.argv[1:])])


def _placeless(word: str) -> str:
    """An argument whose path, where it is an absolute one, is relative to the repository, or its last part outside."""
    flag, equals, value = word.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return word
    root = RESULTS.parents[1]
    return flag + equals + (str(path.relative_to(root)) if path.is_relative_to(root) else path.name)


def _processor() -> str:
    """The processor's name, and AMX where it has that: a prompt is several times faster then, under the same name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return f"{name} with AMX" if "amx_tile" in flags else name
