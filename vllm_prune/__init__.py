"""vllm-prune: per-request visual-token budgets for vLLM.

`register` is the entry point of the group `vllm.general_plugins`; vLLM calls it in every process it
starts, so it is cheap, idempotent and imports no model code.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__", "register"]


def register() -> None:
    """Put our model adapters in vLLM's registry.

    Raises:
        RuntimeError: the installed vLLM is not one this version was tested with.
    """
    from .vllm_compat.plugin import register_models

    register_models()
