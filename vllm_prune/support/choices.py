"""What a request leaves to the server, settled for the model and the engine that are served.

A budget may leave open where visual tokens are chosen (`where: auto`), and by which strategy the cache is compacted.
Both are settled before a budget enters a cache key, so that equal budgets have equal ones. A default is never refused:
what cannot run here gives way to what can.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ..budget.canonical import Part, VisualSpec, kv_specs, options_of
from ..budget.fields import KvField
from ..budget.kv import KvSpec
from ..config.load import PruneConfig
from ..config.worker_facts import WorkerFacts
from ..policy import Decision
from ..visual.item_plan import behind_tower
from . import kv
from .visual import cut_problems


def settled(decision: Decision, vllm_config: Any) -> Decision:
    """A decision in which nothing is left to the server."""
    specs = (decision.kv, *decision.kv_otherwise)
    runs = (spec for spec in specs if spec is None or kv.missing(spec, vllm_config) is None)
    # Where none runs here the first says why.
    return replace(
        decision,
        spec=None if decision.spec is None else settled_spec(decision.spec, vllm_config),
        kv=next(runs, decision.kv) if decision.kv_otherwise else decision.kv,
        kv_otherwise=(),
    )


def settled_spec(spec: VisualSpec, vllm_config: Any) -> VisualSpec:
    """A visual budget that says of every part whether it is chosen inside the tower."""
    return spec.mapped(lambda part: _settled_part(part, vllm_config))


def _settled_part(part: Part, vllm_config: Any) -> Part:
    options = json.loads(part.options)
    if options.get("where") != "auto":
        return part
    # That memory holds outputs of the whole tower, which a cut neither uses nor leaves there.
    whole = WorkerFacts.of(vllm_config).feature_cache_bytes > 0
    if whole or next(cut_problems(vllm_config, options["after"]), None) is not None:
        return behind_tower(part)
    return part.with_options(where="tower")


def in_force(config: PruneConfig, vllm_config: Any) -> dict[str, Any]:
    """What budgets get that name no strategy: for image, video and kv the strategy and its options, JSON-able.

    Args:
        config: the operator's, as it applies to a tenant.
        vllm_config: vLLM's configuration.
    """
    first = {modality: choices[0] for modality, choices in config.visual_choices().items()}
    parts = {m: Part(one.strategy, options_of(one.strategy, one.options, "pruning.visual")) for m, one in first.items()}
    shown: dict[str, Any] = {m: _named(_settled_part(part, vllm_config)) for m, part in parts.items()}
    spec, *others = kv_specs(KvField(keep=0.5), config.kv_choices())
    decision = settled(Decision(None, kv=spec, kv_otherwise=tuple(others)), vllm_config)
    return {**shown, "kv": _named(decision.kv or spec)}


def _named(budget: Part | KvSpec) -> dict[str, Any]:
    return {"strategy": budget.strategy, "options": json.loads(budget.options)}
