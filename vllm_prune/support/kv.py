"""Where KV eviction is refused, and why. Everything that is not known to be exact is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ..budget.kv import KvSpec
from ..catalogue import KV
from ..kv.suitability import REFUSED, SCHEDULER, WORKER, because


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
    absent = sorted(KV.create(spec.strategy, json.loads(spec.options)).wanted() - FOUND.offers)
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
