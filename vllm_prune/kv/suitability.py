"""Whether the block managers and attention layers of a running engine can be compacted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SCHEDULER = "vllm_prune.kv.scheduler.CompactingScheduler"
WORKER = "vllm_prune.kv.worker.CompactingWorker"
REFUSED: dict[str, str] = {
    "scheduler": "a scheduler that is not ours",
    "worker": "a worker that is not ours",
    "runner_v2": "model runner V2",
    "pipeline_parallel": "pipeline parallelism",
    "context_parallel": "context parallelism",
    "micro_batches": "micro-batch overlap (DBO)",
    "cache_dtype": "quantised caches",
    "kv_connector": "KV connectors",
    "speculative": "speculative decoding with a drafter",
    "not_generating": "models that do not generate",
    "mla": "latent attention (MLA)",
    "sliding_window": "sliding windows",
    "alibi": "ALiBi",
    "prefix": "prefix attention (visual tokens that see each other both ways)",
    "hybrid": "layers whose state is not a row per token",
    "cross_attention": "encoder-decoder models",
    "cache_groups": "several cache groups",
    "shared_cache": "layers that share a cache",
    "head_sizes": "keys and values of different size",
    "layout": "unknown cache layouts",
    "resumable": "resumable sessions",
    "prompt_embeds": "prompts given as embeddings",
    "beam_search": "beam search",
    "signal": "strategies whose signals the model does not give",
}
"""Causes of a refusal: label of the skip counter, and the words that `doctor` has for it."""


def because(cause: str, detail: str) -> str:
    """One finding, which `cause_of` can read again after its way through worker, log and HTTP."""
    return f"{REFUSED[cause]}: {detail}"


def group_refusals(managers: Sequence[Any]) -> list[str]:
    """Why the block managers of an engine cannot evict; empty for a single full-attention group."""
    from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

    if len(managers) == 1 and type(managers[0]) is FullAttentionManager:
        return []
    kinds = ", ".join(type(manager).__name__ for manager in managers)
    return [because("cache_groups", f"{len(managers)} ({kinds}); one of full attention is supported")]


def layer_refusals(layers: Sequence[Any]) -> list[str]:
    """Why the attention layers of a worker cannot be compacted; empty when they can."""
    if not layers:
        return [because("hybrid", "the model has no decoder attention")]
    reasons = []
    for layer in layers:
        impl = layer.impl
        window = getattr(impl, "sliding_window", None)
        if isinstance(window, tuple | list):
            window = None if all(side == -1 for side in window) else window
        if window not in (None, -1):
            reasons.append(because("sliding_window", layer.layer_name))
        if getattr(impl, "alibi_slopes", None) is not None:
            reasons.append(because("alibi", f"{layer.layer_name} takes distances from row numbers"))
        if getattr(layer, "use_mm_prefix", False):
            reasons.append(because("prefix", f"{layer.layer_name} takes its ranges from row numbers"))
        if getattr(layer, "kv_sharing_target_layer_name", None) is not None:
            reasons.append(because("shared_cache", layer.layer_name))
        if layer.head_size != getattr(layer, "head_size_v", layer.head_size):
            reasons.append(because("head_sizes", layer.layer_name))
    return reasons[:3]
