"""What a strategy asks of the vision tower, and where a server's configuration does not give it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ..budget.canonical import Part, VisualSpec
from ..catalogue import VISUAL
from ..visual.scorers import vision_selector
from ..visual.scorers.stts.serving import refusal
from ..visual.scorers.tower_shape import tower_shape


def tower_refusal(vllm_config: Any, spec: VisualSpec) -> tuple[str, str] | None:
    """Why a budget's strategy cannot run here, and the request's field to change; None when it can."""
    for part in (spec.image, spec.video):
        for problem in () if part is None else _problems(vllm_config, part):
            return problem
    return None


def _problems(vllm_config: Any, part: Part) -> Iterator[tuple[str, str]]:
    options: dict[str, Any] = json.loads(part.options)
    if "scorer" in VISUAL.strategy_class(part.strategy).needs:
        yield from _scorer_problems(vllm_config, part)
    if "selector" in VISUAL.strategy_class(part.strategy).needs and (
        text := vision_selector.refusal(vllm_config.model_config)
    ):
        yield text, "pruning.visual.strategy"
    cuts = options.get("where") == "tower"
    obstacles = list(_obstacles(vllm_config))
    if obstacles and "tower_attention" in VISUAL.strategy_class(part.strategy).needs:
        text = f"strategy {part.strategy!r} reads the tower's attention, which {obstacles[0]} hides; name another one"
        yield text, "pruning.visual.strategy"
    if cuts and obstacles:
        yield f"{obstacles[0]} runs the tower as a whole; use where: embed", "pruning.visual.options.where"
    model = vllm_config.model_config
    if cuts and "FLASHINFER" in str(model.multimodal_config.mm_encoder_attn_backend):
        yield "the tower's FlashInfer backend takes no cut; use where: embed", "pruning.visual.options.where"
    tower = tower_shape(model.hf_config)
    depth = None if tower is None else tower.depth
    if cuts and depth is not None and options["after"] >= depth:
        text = f"the tower has {depth} blocks, of which `after` must leave one; give at most {depth - 1}"
        yield text, "pruning.visual.options.after"


def _scorer_problems(vllm_config: Any, part: Part) -> Iterator[tuple[str, str]]:
    model, param = vllm_config.model_config, "pruning.visual.strategy"
    if text := refusal(model):
        yield text, param
    for obstacle in _obstacles(vllm_config):
        yield f"strategy {part.strategy!r} cuts inside the tower, which {obstacle} hides; name another one", param
    if "FLASHINFER" in str(model.multimodal_config.mm_encoder_attn_backend):
        yield f"the tower's FlashInfer backend takes no cut, as {part.strategy!r} needs; name another one", param
    if getattr(model.multimodal_config, "mm_encoder_attn_dtype", None) == "fp8":
        yield f"the tower's fp8 attention has no room for the bias of {part.strategy!r}; name another one", param


def _obstacles(vllm_config: Any) -> Iterator[str]:
    """What keeps us from looking into the tower while it runs."""
    compilation, mm = vllm_config.compilation_config, vllm_config.model_config.multimodal_config
    if getattr(compilation, "cudagraph_mm_encoder", False):
        yield "the encoder's graphs"
    if getattr(compilation, "compile_mm_encoder", False):
        yield "a compiled encoder"
    if mm.mm_encoder_tp_mode == "data":
        yield "data-parallel encoding"


def has_adapted_processor(renderer: Any) -> bool:
    """Whether the multimodal processor of a vLLM renderer is one of ours."""
    return bool(getattr(getattr(renderer, "mm_processor", None), "vllm_prune_adapter", False))


def unsupported_model(model_config: Any) -> str:
    """What to tell a client that asks for pruning on a model without an adapter."""
    from ..visual.models.table import ADAPTERS

    architectures = ", ".join(model_config.architectures or ()) or "this model"
    return f"{architectures} has no visual pruning; supported: {', '.join(sorted(ADAPTERS))}"


def config_refusals(vllm_config: Any) -> list[str]:
    """Why a server with this configuration refuses visual budgets; empty when it honours them."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    mm, speculative = model.multimodal_config, vllm_config.speculative_config
    compilation = vllm_config.compilation_config
    reasons = []
    if mm is None:
        return ["the model takes no images or videos"]
    if mm.is_multimodal_pruning_enabled():
        reasons.append("vLLM's own --video-pruning-rate is set; drop it and use budgets per request")
    if parallel.pipeline_parallel_size > 1:
        reasons.append("pipeline parallelism: positions of kept tokens are known on the first rank only")
    if getattr(parallel, "use_ubatching", False):
        reasons.append("micro-batch overlap (DBO): a step's positions would be split")
    if speculative is not None and speculative.method != "ngram":
        reasons.append(f"speculative decoding by {speculative.method}: the drafter would see unpruned media")
    if getattr(vllm_config.lora_config, "enable_tower_connector_lora", False):
        reasons.append("LoRA on the vision tower: vLLM counts its tokens from the placeholders, which are pruned")
    if vllm_config.ec_transfer_config is not None:
        reasons.append("encoder disaggregation: encoder outputs of pruned items are wider")
    if getattr(compilation, "cudagraph_mm_encoder", False) and mm.mm_encoder_tp_mode == "data":
        reasons.append("encoder graphs with data-parallel encoding: outputs are gathered at unpruned size")
    return reasons
