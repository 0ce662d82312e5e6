"""Where visual pruning, or a strategy of it, is refused, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..budget.canonical import Part, VisualSpec
from ..budget.errors import Finding, visual_finding
from ..catalogue import VISUAL
from ..visual.models.abilities import no_cut, one_position
from ..visual.models.table import DRAFTERS, FAMILIES, Family
from ..visual.scorers.tower_shape import tower_shape
from ..visual.tower.obstacles import cut_obstacles, takes_no_cut
from . import signals
from .workers import workers_of


def tower_refusal(vllm_config: Any, spec: VisualSpec) -> Finding | None:
    """Why a budget's strategy cannot run here; None when it can."""
    parts = (part for part in (spec.image, spec.video) if part is not None)
    return next((finding for part in parts for finding in _problems(vllm_config, part)), None)


def _problems(vllm_config: Any, part: Part) -> Iterator[Finding]:
    options: dict[str, Any] = json.loads(part.options)
    wanted = VISUAL.create(part.strategy, options).wanted()
    for name in sorted(wanted):
        if (finding := signals.VISUAL[name](vllm_config, part.strategy)) is not None:
            yield replace(finding, text=f"strategy {part.strategy!r} cannot run here: {finding.text}")
    if "tower_attention" in wanted:
        yield from _attention_problems(vllm_config, options["skip_blocks"], options["tower_blocks"])
    if options.get("where") == "tower":
        yield from cut_problems(vllm_config, options["after"])
    if options.get("positions", 1) > 1 and (finding := one_position(_one_position(vllm_config))) is not None:
        yield finding


def _one_position(vllm_config: Any) -> str | None:
    """Why merged tokens have one position each here; None where they can have several."""
    family, workers = signals.served_family(vllm_config), workers_of(vllm_config)
    if family is not None and family.one_position:
        return family.one_position
    if workers is None:
        return "it takes vllm-prune serve, which asks the workers what rotary embedding they have"
    return workers.one_position


def _attention_problems(vllm_config: Any, skipped: int, averaged: int | None) -> Iterator[Finding]:
    tower = tower_shape(vllm_config.model_config.hf_config)
    if tower is None or not tower.whole or skipped + (averaged or 1) <= tower.whole:
        return
    field = "skip_blocks" if skipped >= tower.whole else "tower_blocks"
    most = tower.whole - (1 if field == "skip_blocks" else skipped)
    text = f"the tower has {tower.whole} blocks that attend to whole frames; give at most {most}"
    yield Finding("tower_depth", f"pruning.visual.options.{field}", text)


def cut_problems(vllm_config: Any, after: int | None) -> Iterator[Finding]:
    """Why nothing can be cut inside the tower here.

    Args:
        vllm_config: vLLM's configuration.
        after: blocks in front of the cut; None for the default, which leaves one.
    """
    family = signals.served_family(vllm_config)
    if family is None or vllm_config.model_config.multimodal_config is None:
        return iter([unsupported_model(vllm_config.model_config)])
    return _cut_problems_of(family, vllm_config, after)


def _cut_problems_of(family: Family, vllm_config: Any, after: int | None) -> Iterator[Finding]:
    where = "pruning.visual.options.where"
    if not family.cuts:
        yield Finding("hidden_tower", where, no_cut(family))
    for obstacle in cut_obstacles(vllm_config):
        yield Finding("hidden_tower", where, f"{obstacle} runs the tower as a whole; use where: embed")
    if takes_no_cut(vllm_config):
        yield Finding("tower_backend", where, "the tower's FlashInfer backend takes no cut; use where: embed")
    tower = tower_shape(vllm_config.model_config.hf_config)
    if tower is not None and tower.depth is not None and after is not None and after >= tower.depth:
        text = f"the tower has {tower.depth} blocks, of which `after` must leave one; give at most {tower.depth - 1}"
        yield Finding("tower_depth", "pruning.visual.options.after", text)


def has_adapted_processor(renderer: Any) -> bool:
    """Whether the multimodal processor of a vLLM renderer is one of ours."""
    return bool(getattr(getattr(renderer, "mm_processor", None), "vllm_prune_adapter", False))


def unsupported_model(model_config: Any) -> Finding:
    """Why pruning is refused on a model without an adapter."""
    architectures = ", ".join(model_config.architectures or ()) or "this model"
    return visual_finding("adapter", f"{architectures} has none; supported: {', '.join(sorted(FAMILIES))}")


def config_refusals(vllm_config: Any) -> list[Finding]:
    """Why a server with this configuration refuses visual budgets; empty when it honours them."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    mm, speculative = model.multimodal_config, vllm_config.speculative_config
    if mm is None:
        return [visual_finding("no_media", "this one takes text only")]
    refused = []
    if mm.is_multimodal_pruning_enabled():
        refused.append(visual_finding("vllm_pruning", "it is set; drop it and use budgets per request"))
    if parallel.pipeline_parallel_size > 1:
        refused.append(visual_finding("pipeline_parallel", "positions of kept tokens are known on the first rank only"))
    if getattr(parallel, "use_ubatching", False):
        refused.append(visual_finding("micro_batches", "a step's positions would be split"))
    if speculative is not None and not _drafts_on_pruned_media(speculative):
        detail = (
            f"the drafter of {speculative.method} takes no pruned media; ngram does, and mtp of {', '.join(DRAFTERS)}"
        )
        refused.append(visual_finding("speculative", detail))
    if getattr(vllm_config.lora_config, "enable_tower_connector_lora", False):
        detail = "vLLM counts its tokens from the placeholders, which are pruned"
        refused.append(visual_finding("tower_lora", detail))
    if vllm_config.ec_transfer_config is not None:
        refused.append(visual_finding("encoder_transfer", "encoder outputs of pruned items are wider"))
    graphs = getattr(vllm_config.compilation_config, "cudagraph_mm_encoder", False)
    if graphs and mm.mm_encoder_tp_mode == "data":
        refused.append(visual_finding("encoder_graphs", "outputs are gathered at unpruned size"))
    family = signals.served_family(vllm_config)
    if graphs and family is not None and family.kind == "generic":
        refused.append(visual_finding("encoder_graphs", f"they bypass the adapter of {family.name}; leave them off"))
    return refused


def _drafts_on_pruned_media(speculative: Any) -> bool:
    if speculative.method == "ngram":
        return True
    draft = getattr(speculative, "draft_model_config", None)
    return speculative.method == "mtp" and bool(set(getattr(draft, "architectures", None) or ()) & set(DRAFTERS))
