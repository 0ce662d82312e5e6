"""Where KV eviction is refused, and why. Everything that is not known to be exact is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .spec import KvSpec
from .strategies import create

SCHEDULER = "vllm_prune.kv.scheduler.CompactingScheduler"
WORKER = "vllm_prune.kv.worker.CompactingWorker"


@dataclass
class Findings:
    """What the workers of the running server have said about themselves.

    Attributes:
        reasons: why they cannot compact; empty when they can.
        offers: signals that strategies can ask for; None before anybody asked.
    """

    reasons: list[str] = field(default_factory=list)
    offers: frozenset[str] | None = None


FOUND = Findings()


def refusal(vllm_config: Any) -> str | None:
    """Why no budget is honoured here, None when budgets are."""
    reasons = [*config_refusals(vllm_config), *FOUND.reasons]
    return reasons[0] if reasons else None


def missing(spec: KvSpec) -> str | None:
    """Why this strategy cannot run on the served model, None when it can."""
    if FOUND.offers is None:
        return None
    absent = sorted(create(spec.strategy, json.loads(spec.options)).wanted() - FOUND.offers)
    return f"strategy {spec.strategy!r} needs {', '.join(absent)}, which this model does not give" if absent else None


def config_refusals(vllm_config: Any) -> list[str]:
    """Why a server with this configuration cannot evict; empty when it can."""
    reasons = [
        *_installed(vllm_config),
        *_parallelism(vllm_config.parallel_config),
        *_cache(vllm_config),
        *_model(vllm_config.model_config),
    ]
    speculative = vllm_config.speculative_config
    if speculative is not None and speculative.method != "ngram":
        reasons.append(f"speculative decoding by {speculative.method}: the drafter has a cache of its own")
    return reasons


def _installed(vllm_config: Any) -> list[str]:
    reasons = []
    if vllm_config.scheduler_config.scheduler_cls != SCHEDULER:
        reasons.append(f"the scheduler is not ours; start with vllm-prune serve, or --scheduler-cls {SCHEDULER}")
    if vllm_config.parallel_config.worker_cls != WORKER:
        reasons.append(f"the worker is not ours; start with vllm-prune serve, or --worker-cls {WORKER}")
    if vllm_config.use_v2_model_runner:
        reasons.append("model runner V2 has no adapter for it yet; set VLLM_USE_V2_MODEL_RUNNER=0")
    return reasons


def _parallelism(parallel: Any) -> list[str]:
    reasons = []
    if parallel.pipeline_parallel_size > 1:
        reasons.append("pipeline parallelism has not been proven exact")
    if max(parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size) > 1:
        reasons.append("context parallelism: rows of one request lie on several ranks")
    if parallel.use_ubatching:
        reasons.append("micro-batch overlap (DBO): a step's cache lengths would be split")
    return reasons


def _cache(vllm_config: Any) -> list[str]:
    reasons = []
    kind = vllm_config.cache_config.cache_dtype
    if kind not in ("auto", "bfloat16", "float16", "float32"):
        reasons.append(f"cache type {kind}: rows are scored and moved as they were computed; use auto")
    if vllm_config.kv_transfer_config is not None:
        reasons.append("a KV connector would publish compacted rows under the prompt's name")
    return reasons


def _model(model: Any) -> list[str]:
    reasons = []
    if model.runner_type != "generate":
        reasons.append(f"a {model.runner_type} model caches nothing to evict")
    if model.use_mla:
        reasons.append("latent attention (MLA) keeps one row for all heads")
    text = model.hf_text_config
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        reasons.append("sliding-window attention counts rows, not positions")
    if model.is_hybrid or model.is_attention_free:
        reasons.append("the model has layers whose state is not a row per token")
    if model.is_encoder_decoder:
        reasons.append("cross-attention caches rows of the encoder")
    return reasons


def group_refusals(managers: Sequence[Any]) -> list[str]:
    """Why the block managers of an engine cannot evict; empty for a single full-attention group."""
    from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

    if len(managers) == 1 and type(managers[0]) is FullAttentionManager:
        return []
    kinds = ", ".join(type(manager).__name__ for manager in managers)
    return [f"the cache is managed in {len(managers)} group(s) ({kinds}); one full-attention group is supported"]


def layer_refusals(layers: Sequence[Any]) -> list[str]:
    """Why the attention layers of a worker cannot be compacted; empty when they can."""
    reasons = []
    for layer in layers:
        impl = layer.impl
        window = getattr(impl, "sliding_window", None)
        if isinstance(window, tuple | list):
            window = None if all(side == -1 for side in window) else window
        if window not in (None, -1):
            reasons.append(f"{layer.layer_name}: sliding window")
        if getattr(impl, "alibi_slopes", None) is not None:
            reasons.append(f"{layer.layer_name}: ALiBi distances come from row numbers")
        if getattr(layer, "kv_sharing_target_layer_name", None) is not None:
            reasons.append(f"{layer.layer_name}: shares the cache of another layer")
        if layer.head_size != getattr(layer, "head_size_v", layer.head_size):
            reasons.append(f"{layer.layer_name}: keys and values differ in size")
    return reasons[:3]
