"""What vLLM's CPU kernels need of the operating system and do not ask for."""

from __future__ import annotations

import torch


def permit_tiles() -> None:
    """Ask Linux for this process's use of AMX's tile registers; nothing where the processor has none. Idempotent.

    vLLM's bfloat16 attention uses tiles as soon as the processor has them. Without the permission the first request
    ends the worker with an illegal instruction, unless a library that asks, such as oneDNN, has used tiles before.
    """
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
