"""A tiny checkpoint of OpenCUA: Qwen2.5-VL's tower before a language model with one position per token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..checkpoints import _HALF, _VISION
from .recipes import _plain_text
from .recipes_of_vllm import read, rewrite

TOKENS = ("<|media_begin|>", "<|media_end|>", "<|media_placeholder|>")


def twin(tokenizer: Any, folder: Path) -> Any:
    """transformers' Qwen2.5-VL, which with three equal rows of positions is the same."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tower = {"depth": 3, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]}
    config = Qwen2_5_VLConfig(
        text_config=_plain_text(tokenizer, rope_parameters=rope),
        vision_config={**_VISION, **tower},
        image_token_id=tokenizer.convert_tokens_to_ids("<|media_placeholder|>"),
        tie_word_embeddings=False,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def opencua(folder: Path) -> None:
    """The hub's configuration, whose class comes with the checkpoint; the settings of the image processor."""
    from transformers import AutoConfig, PreTrainedConfig, Qwen2Config
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from vllm.model_executor.models.opencua import OpenCUAProcessor

    class OpenCUAConfig(PreTrainedConfig):
        model_type = "opencua"
        sub_configs: ClassVar = {"text_config": Qwen2Config, "vision_config": Qwen2_5_VLVisionConfig}

        def __init__(self, vision_config: Any = None, text_config: Any = None, **more: Any) -> None:
            self.vision_config = Qwen2_5_VLVisionConfig(**(vision_config or {}))
            self.text_config = Qwen2Config(**(text_config or {}))
            super().__init__(**more)

    if "image_processor" not in OpenCUAProcessor.get_attributes():
        # As vLLM 0.33 has it; under transformers 5.19 the processor of 0.32 drops its image processor.
        names = ["image_processor", "tokenizer", "video_processor"]
        OpenCUAProcessor.get_attributes = classmethod(lambda cls: names)
    AutoConfig.register(OpenCUAConfig.model_type, OpenCUAConfig, exist_ok=True)
    weights, settings = read(folder)
    text = {**settings["text_config"], "model_type": "qwen2", "rope_parameters": {"rope_type": "default"}}
    text["rope_parameters"]["rope_theta"] = 10000.0
    rewrite(folder, weights, {
        "architectures": ["OpenCUAForConditionalGeneration"], "model_type": OpenCUAConfig.model_type,
        "vision_config": settings["vision_config"], "text_config": text,
        "media_placeholder_token_id": settings["image_token_id"], "tie_word_embeddings": False,
    })  # fmt: skip
    pixels = {"min_pixels": 56 * 56, "max_pixels": 1024 * 1024, "patch_size": 14, "temporal_patch_size": 2}
    images = {"image_processor_type": "Qwen2VLImageProcessor", "merge_size": 2, **pixels, **_HALF}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))


def tower(hf: Any, modality: str, fields: dict[str, Any]) -> Tensor:
    """A picture."""
    rows: Tensor = hf.model.get_image_features(fields["pixel_values"], fields["image_grid_thw"][None]).pooler_output[0]
    return rows
