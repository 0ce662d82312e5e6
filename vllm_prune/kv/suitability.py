"""Whether the block managers and attention layers of a running engine can be compacted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..budget.errors import Finding, kv_finding

SCHEDULER = "vllm_prune.kv.scheduler.CompactingScheduler"
WORKER = "vllm_prune.kv.worker.CompactingWorker"


def group_refusals(managers: Sequence[Any]) -> list[Finding]:
    """Why the block managers of an engine cannot evict; empty for a single full-attention group."""
    from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

    if len(managers) == 1 and type(managers[0]) is FullAttentionManager:
        return []
    kinds = ", ".join(type(manager).__name__ for manager in managers)
    return [kv_finding("cache_groups", f"{len(managers)} ({kinds}); one of full attention is supported")]


def layer_refusals(layers: Sequence[Any]) -> list[Finding]:
    """Why the attention layers of a worker cannot be compacted; empty when they can."""
    if not layers:
        return [kv_finding("hybrid", "the model has no decoder attention")]
    findings = []
    for layer in layers:
        impl = layer.impl
        window = getattr(impl, "sliding_window", None)
        if isinstance(window, tuple | list):
            window = None if all(side == -1 for side in window) else window
        if window not in (None, -1):
            findings.append(kv_finding("sliding_window", layer.layer_name))
        if getattr(impl, "alibi_slopes", None) is not None:
            findings.append(kv_finding("alibi", f"{layer.layer_name} takes distances from row numbers"))
        if getattr(layer, "use_mm_prefix", False):
            findings.append(kv_finding("prefix", f"{layer.layer_name} takes its ranges from row numbers"))
        if getattr(layer, "kv_sharing_target_layer_name", None) is not None:
            findings.append(kv_finding("shared_cache", layer.layer_name))
        if layer.head_size != getattr(layer, "head_size_v", layer.head_size):
            findings.append(kv_finding("head_sizes", layer.layer_name))
    return findings[:3]
