"""Variables of this project; vLLM takes every name that starts with VLLM_ and is not in its table for a mistake."""

from __future__ import annotations

from .signatures import load

OURS = (
    "VLLM_PRUNE_CONFIG",
    "VLLM_PRUNE_LAUNCHED",
    "VLLM_PRUNE_LOG_FORMAT",
    "VLLM_PRUNE_MALLOC",
    "VLLM_PRUNE_PRELOADED",
    "VLLM_PRUNE_TENANTS",
)


def declare_variables() -> None:
    """Enter them in vLLM's table, so that it neither warns of them nor, where asked to be strict, refuses to start.

    Their values are kept out, as vLLM makes its key of compiled graphs of the table and writes it to disk. Idempotent.
    """
    table = load("environment_variables")
    for name in OURS:
        table.setdefault(name, lambda: None)
