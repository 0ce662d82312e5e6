"""Where a strategy's signal is not to be had: one entry per signal, by its name in `vllm_prune.signals`.

How a worker provides it is in `visual/tower/signals.py` and `kv/signals.py` under the same name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from ..budget.errors import Finding
from ..config.load import configuration
from ..config.worker_facts import FLAG, KEY, WorkerFacts
from ..kv.window_slots import GATED
from ..signals import KvSignal, VisualSignal
from ..visual.models.abilities import lacks
from ..visual.models.table import Family, family_of
from ..visual.scorers import trained
from ..visual.scorers.base import TrainedWeights
from ..visual.scorers.stts.weights import STTS
from ..visual.scorers.vision_selector import SELECTOR
from ..visual.tower.obstacles import cut_obstacles, obstacles, takes_no_cut
from .workers import workers_of

Unavailable = Callable[[Any], Finding | None]
"""Why a signal is not to be had under a vLLM configuration, None where it is."""

StrategyUnavailable = Callable[[Any, str], Finding | None]
"""The same for the strategy of this name, as trained layers are those of one strategy."""

VISUAL_PARAM, KV_PARAM = "pruning.visual.strategy", "pruning.kv.strategy"


def _inside(what: str) -> Unavailable:
    """For what is seen while the tower runs."""

    def unavailable(vllm_config: Any) -> Finding | None:
        for obstacle in obstacles(vllm_config):
            return _hidden(f"it {what}, which {obstacle} hides; name another one")
        return None

    return unavailable


def _scorer(vllm_config: Any) -> Finding | None:
    if finding := _weights(STTS, "scorer", vllm_config):
        return finding
    for obstacle in cut_obstacles(vllm_config):
        return _hidden(f"it cuts inside the tower, which {obstacle} hides; name another one")
    if takes_no_cut(vllm_config):
        text = "it cuts inside the tower, whose FlashInfer backend takes no cut; name another one"
        return Finding("tower_backend", VISUAL_PARAM, text)
    if getattr(vllm_config.model_config.multimodal_config, "mm_encoder_attn_dtype", None) == "fp8":
        text = "it adds a bias to the tower's attention, which fp8 has no room for; name another one"
        return Finding("tower_backend", VISUAL_PARAM, text)
    return None


def _selector(vllm_config: Any) -> Finding | None:
    return _weights(SELECTOR, "selector", vllm_config)


def _trained(vllm_config: Any, strategy: str) -> Finding | None:
    text = _unknown_layers(strategy, vllm_config) or trained.refusal(strategy, vllm_config)
    return None if text is None else Finding("weights", VISUAL_PARAM, text)


def _weights(weights: TrainedWeights, cause: Literal["scorer", "selector"], vllm_config: Any) -> Finding | None:
    text = _unknown_to_workers(cause, vllm_config) or weights.refusal(vllm_config)
    return None if text is None else Finding(cause, VISUAL_PARAM, text)


def _unknown_to_workers(cause: Literal["scorer", "selector"], vllm_config: Any) -> str | None:
    """Under plain `vllm serve` nothing carries the paths of the configuration to the workers."""
    facts, configured = WorkerFacts.of(vllm_config), WorkerFacts.configured(configuration())
    path = getattr(configured, cause)
    if facts.launched or path is None or getattr(facts, cause) is not None:
        return None
    return _tell_workers(path, {cause: path})


def _unknown_layers(strategy: str, vllm_config: Any) -> str | None:
    facts, path = WorkerFacts.of(vllm_config), WorkerFacts.configured(configuration()).weights.get(strategy)
    if facts.launched or path is None or strategy in facts.weights:
        return None
    return _tell_workers(path, {"weights": {strategy: path}})


def _tell_workers(path: str, facts: dict[str, Any]) -> str:
    argument = json.dumps({KEY: facts})
    return f"the workers do not know of {path}: start with vllm-prune serve, or give vllm serve {FLAG} '{argument}'"


def _hidden(text: str) -> Finding:
    return Finding("hidden_tower", VISUAL_PARAM, text)


def _not_offered(signal: KvSignal) -> Unavailable:
    def unavailable(vllm_config: Any) -> Finding | None:
        workers = workers_of(vllm_config)
        if workers is None or signal in workers.offers:
            return None
        return Finding("signal", KV_PARAM, f"it needs {signal}, which this model does not give; name another one")

    return unavailable


def _moments(vllm_config: Any) -> Finding | None:
    if WorkerFacts.of(vllm_config).prompt_queries == 0:
        text = "it needs sums over all queries of a prompt, which the server has no room for; set kv.prompt_queries"
        return Finding("signal", "pruning.kv.options", f"{text}, or give queries: window")
    return _not_offered("moments")(vllm_config)


def _gates(vllm_config: Any) -> Finding | None:
    text = _unknown_layers(GATED, vllm_config) or trained.refusal(GATED, vllm_config)
    if text is not None:
        return Finding("weights", KV_PARAM, text)
    finding = _not_offered("gates")(vllm_config)
    if finding is None:
        return None
    text = (
        "its gates read the hidden state behind every layer, and this model has layers that do not hand it to an input "
        "norm, or others beside full attention; name another one"
    )
    return replace(finding, text=text)


def _always(vllm_config: Any) -> Finding | None:
    return None


def served_family(vllm_config: Any) -> Family | None:
    """The family of the served model; None for a model without an adapter."""
    return family_of(getattr(vllm_config.model_config, "architectures", None) or ())


def _of_adapter(signal: VisualSignal, unavailable: Unavailable | None = None) -> StrategyUnavailable:
    """What a family's adapter does not give is not to be had, whatever the configuration."""

    def refusal(vllm_config: Any, strategy: str) -> Finding | None:
        family = served_family(vllm_config)
        text = None if family is None else lacks(family, signal)
        if text is not None:
            return Finding("signal", VISUAL_PARAM, text)
        return _trained(vllm_config, strategy) if unavailable is None else unavailable(vllm_config)

    return refusal


VISUAL: dict[VisualSignal, StrategyUnavailable] = {
    "tower_attention": _of_adapter("tower_attention", _inside("reads the tower's attention")),
    "pixels": _of_adapter("pixels", _always),
    "scorer": _of_adapter("scorer", _scorer),
    "selector": _of_adapter("selector", _selector),
    "projector": _of_adapter("projector", _inside("runs the tower's projector again")),
    "text": _of_adapter("text", _always),
    "unpooled": _of_adapter("unpooled", _always),
    "weights": _of_adapter("weights"),
    "any_size": _of_adapter("any_size", _always),
}
KV: dict[KvSignal, Unavailable] = {
    "queries": _not_offered("queries"),
    "values": _not_offered("values"),
    "saliency": _not_offered("saliency"),
    "rotation": _not_offered("rotation"),
    "coordinates": _not_offered("coordinates"),
    "moments": _moments,
    "gates": _gates,
}
