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


def cause_of(finding: str) -> str:
    """The cause that a finding names; "other" for one of another origin."""
    return next((cause for cause, words in REFUSED.items() if finding.startswith(f"{words}:")), "other")


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
    return because("signal", f"{spec.strategy!r} needs {', '.join(absent)}; name another one") if absent else None


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
        reasons.append(because("speculative", f"that of {speculative.method} has a cache of its own"))
    return reasons


def _installed(vllm_config: Any) -> list[str]:
    reasons = []
    if vllm_config.scheduler_config.scheduler_cls != SCHEDULER:
        reasons.append(because("scheduler", f"start with vllm-prune serve, or --scheduler-cls {SCHEDULER}"))
    if vllm_config.parallel_config.worker_cls != WORKER:
        reasons.append(because("worker", f"start with vllm-prune serve, or --worker-cls {WORKER}"))
    if vllm_config.use_v2_model_runner:
        reasons.append(because("runner_v2", "it has no adapter yet; set VLLM_USE_V2_MODEL_RUNNER=0"))
    return reasons


def _parallelism(parallel: Any) -> list[str]:
    reasons = []
    if parallel.pipeline_parallel_size > 1:
        reasons.append(because("pipeline_parallel", "it has not been proven exact"))
    if max(parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size) > 1:
        reasons.append(because("context_parallel", "rows of one request lie on several ranks"))
    if parallel.use_ubatching:
        reasons.append(because("micro_batches", "a step's cache lengths would be split"))
    return reasons


def _cache(vllm_config: Any) -> list[str]:
    reasons = []
    kind = vllm_config.cache_config.cache_dtype
    if kind not in ("auto", "bfloat16", "float16", "float32"):
        reasons.append(because("cache_dtype", f"{kind} rows cannot be moved as they were computed; use auto"))
    if vllm_config.kv_transfer_config is not None:
        reasons.append(because("kv_connector", "one would publish compacted rows under the prompt's name"))
    return reasons


def _model(model: Any) -> list[str]:
    reasons = []
    if model.runner_type != "generate":
        reasons.append(because("not_generating", f"a {model.runner_type} model caches nothing to evict"))
    if model.use_mla:
        reasons.append(because("mla", "it keeps one row for all heads"))
    text = model.hf_text_config
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        reasons.append(because("sliding_window", "they count rows, not positions"))
    if model.is_hybrid or model.is_attention_free:
        reasons.append(because("hybrid", "there is nothing to choose among"))
    if model.is_encoder_decoder:
        reasons.append(because("cross_attention", "their caches hold rows of the encoder"))
    return reasons


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
