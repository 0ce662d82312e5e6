"""Adapters per model family, by vLLM architecture name; imported only when vLLM builds the model."""

from __future__ import annotations

ADAPTERS: dict[str, str] = {
    "Qwen2_5_VLForConditionalGeneration": "vllm_prune.visual.models.qwen2_5_vl:PruneQwen25VL",
    "Qwen3VLForConditionalGeneration": "vllm_prune.visual.models.qwen3_vl:PruneQwen3VL",
    "Molmo2ForConditionalGeneration": "vllm_prune.visual.models.molmo2:PruneMolmo2",
}
