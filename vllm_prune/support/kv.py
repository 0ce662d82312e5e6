"""Where KV eviction is refused, and why. Everything that is not known to be exact is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from ..budget.errors import Finding, kv_finding
from ..budget.kv import KvSpec
from ..catalogue import KV
from ..config.worker_facts import WorkerFacts
from ..kv.group_budgets import GroupBudgets
from ..kv.suitability import SCHEDULER, WORKER, speculation_refusals
from ..kv.window_slots import WindowLimits
from . import signals
from .workers import workers_of

LAYERED = (
    "{!r} keeps fewer rows in later layers, and all layers of this server share one block table, where they would free "
    "nothing; set kv.layer_groups in its configuration, or name another strategy"
)
MIXED = (
    "{!r} keeps fewer rows in later layers, which needs groups of layers, and those need a model whose layers all have "
    "full attention; this one has others beside them, so name another strategy"
)


def findings(vllm_config: Any) -> list[Finding]:
    """Why no budget is honoured on this server; empty when budgets are."""
    workers = workers_of(vllm_config)
    return [*config_refusals(vllm_config), *(() if workers is None else workers.findings)]


def refusal(vllm_config: Any) -> Finding | None:
    """Why no budget is honoured on this server, None when budgets are."""
    return next(iter(findings(vllm_config)), None)


def missing(spec: KvSpec, vllm_config: Any) -> Finding | None:
    """Why this budget cannot be honoured on the served model, None when it can."""
    largest = WorkerFacts.of(vllm_config).max_window
    if spec.window > largest:
        detail = f"{spec.window}, and they hold {largest}; give at most that, or start with vllm-prune serve"
        return kv_finding("window", detail, "pruning.kv.window")
    strategy = KV.create(spec.strategy, json.loads(spec.options))
    if strategy.layered and not WorkerFacts.of(vllm_config).layer_groups:
        model = vllm_config.model_config
        text = MIXED if model.is_hybrid or _has_window(model) else LAYERED
        return kv_finding("layer_groups", text.format(strategy.name), "pruning.kv.strategy")
    for name in sorted(strategy.wanted()):
        if (finding := signals.KV[name](vllm_config)) is not None:
            return replace(finding, text=f"KV strategy {spec.strategy!r} cannot run here: {finding.text}")
    problem = strategy.unfit(int(vllm_config.model_config.get_head_size()))
    return None if problem is None else kv_finding("options", problem, "pruning.kv.options")


def predicted(spec: KvSpec, prompt: int, places: Sequence[Any], vllm_config: Any) -> GroupBudgets:
    """The budget as the engine will divide it over the groups of layers.

    Args:
        spec: the budget; `missing` has not refused it.
        prompt: tokens of the prompt.
        places: vLLM's `PlaceholderRange`s of its media items.
        vllm_config: vLLM's configuration.
    """
    starts = WorkerFacts.of(vllm_config).layer_groups
    bounds = [0, *starts, int(vllm_config.model_config.hf_text_config.num_hidden_layers)] if starts else [0, 1]
    layers = tuple(end - start for start, end in pairwise(bounds))
    return GroupBudgets.of(spec, prompt, places, WindowLimits.of(vllm_config), layers)


def beam_search() -> Finding:
    """Why a request for beam search gets no KV budget."""
    return kv_finding("beam_search", "it copies caches, which eviction makes private; drop one of the two")


def config_refusals(vllm_config: Any) -> list[Finding]:
    """Why a server with this configuration cannot evict; empty when it can."""
    return [
        *_installed(vllm_config),
        *_parallelism(vllm_config.parallel_config),
        *_cache(vllm_config),
        *_model(vllm_config.model_config),
        *_speculation(vllm_config),
    ]


def _installed(vllm_config: Any) -> list[Finding]:
    refused = []
    if vllm_config.scheduler_config.scheduler_cls != SCHEDULER:
        refused.append(kv_finding("scheduler", f"start with vllm-prune serve, or --scheduler-cls {SCHEDULER}"))
    if vllm_config.parallel_config.worker_cls != WORKER:
        refused.append(kv_finding("worker", f"start with vllm-prune serve, or --worker-cls {WORKER}"))
    return refused


def _speculation(vllm_config: Any) -> list[Finding]:
    speculative, model = vllm_config.speculative_config, vllm_config.model_config
    if speculative is None:
        return []
    if speculative.method != "ngram":
        return [kv_finding("speculative", f"that of {speculative.method} has its own cache")]
    if model.is_hybrid or _has_window(model) or WorkerFacts.of(vllm_config).layer_groups:
        return speculation_refusals(2, True)
    if vllm_config.use_v2_model_runner:
        # The host counts drafts as computed before they are verified, and what is observed follows its counts.
        why = (
            f"that of {speculative.method} has not been proven exact there; drop it, or set VLLM_USE_V2_MODEL_RUNNER=0"
        )
        return [kv_finding("speculative_v2", why)]
    return []


def _parallelism(parallel: Any) -> list[Finding]:
    refused = []
    if parallel.pipeline_parallel_size > 1:
        refused.append(kv_finding("pipeline_parallel", "it has not been proven exact"))
    if max(parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size) > 1:
        refused.append(kv_finding("context_parallel", "rows of one request lie on several ranks"))
    if parallel.use_ubatching:
        refused.append(kv_finding("micro_batches", "a step's cache lengths would be split"))
    return refused


def _cache(vllm_config: Any) -> list[Finding]:
    refused = []
    kind = vllm_config.cache_config.cache_dtype
    if kind not in ("auto", "bfloat16", "float16", "float32"):
        refused.append(kv_finding("cache_dtype", f"{kind} rows cannot be moved as they were computed; use auto"))
    if vllm_config.kv_transfer_config is not None:
        refused.append(kv_finding("kv_connector", "one would publish compacted rows under the prompt's name"))
    return refused


def _model(model: Any) -> list[Finding]:
    refused = []
    if model.runner_type != "generate":
        refused.append(kv_finding("not_generating", f"a {model.runner_type} model caches nothing to evict"))
    if model.use_mla:
        refused.append(kv_finding("mla", "it keeps one row for all heads"))
    if _has_window(model) and "full_attention" not in (getattr(model.hf_text_config, "layer_types", None) or ()):
        refused.append(kv_finding("sliding_window", "no layer sees the whole text"))
    if model.is_attention_free:
        refused.append(kv_finding("hybrid", "there is nothing to choose among"))
    if model.is_encoder_decoder:
        refused.append(kv_finding("cross_attention", "their caches hold rows of the encoder"))
    return refused


def _has_window(model: Any) -> bool:
    """Whether some layers of a model see the rows of a sliding window only."""
    text = model.hf_text_config
    return bool(getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True))
