"""What a benchmark serves: models with random weights, small ones or Qwen2.5-VL-7B's shapes for timing on a GPU."""

from __future__ import annotations

import json
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Any

from vllm_prune.visual.scorers.stts import files
from vllm_prune.visual.scorers.stts.model import Scorer, Shape

from . import random_model, shapes
from .random_model import DEMO, lay_out, set_rope
from .stts.towers import AFTER


class Model(StrEnum):
    """A small Qwen2.5-VL or Qwen3-VL with random weights, or the shapes of Qwen2.5-VL-7B, which need a GPU."""

    small = "small"
    qwen3_vl = "qwen3_vl"
    seven_b = "7b"


def served(model: Model) -> tuple[Path, list[str], str]:
    """Folder, further arguments of each of two servers side by side, and what names of result files begin with."""
    if model is Model.small:
        return random_model.build(), [], ""
    if model is Model.qwen3_vl:
        return shapes.build(shapes.SMALL_3), ["--load-format", "dummy"], "qwen3_vl_"
    # Prefill is measured: graphs would only make the start longer.
    room = ["--gpu-memory-utilization", "0.42", "--kv-cache-memory-bytes", str(8 << 30), "--enforce-eager"]
    return build(), ["--load-format", "dummy", *room], "gpu_"


def build(folder: Path | None = None) -> Path:
    """Write configuration, tokenizer, processor and a random scorer once, and return the folder.

    The vocabulary stays the demo model's: only the last token's row meets it in a prefill.
    """
    import torch
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    folder = folder or Path(tempfile.gettempdir()) / "vllm-prune-7b-shapes"
    if (folder / "done").exists():
        return folder
    lay_out(folder)
    config = _config(AutoConfig.from_pretrained(DEMO))
    config.save_pretrained(folder)
    # Without this file vLLM asks the hub for sampling defaults.
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    vision = config.vision_config
    torch.manual_seed(0)
    shape = Shape(vision.hidden_size, vision.num_heads, 4 * vision.hidden_size, vision.spatial_merge_size, AFTER)
    files.save(Scorer(shape), folder / files.PLACE)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    counts = {"parameters": _count(model), "tower": _count(model.model.visual)}
    (folder / "done").write_text(json.dumps(counts))
    return folder


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _config(config: Any) -> Any:
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.num_hidden_layers, text.intermediate_size = 3584, 28, 18944
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 28, 4, 128
    set_rope(text, [16, 24, 24], rope_theta=1e6)
    text.layer_types = ["full_attention"] * 28
    text.max_position_embeddings = 32768
    vision.depth, vision.hidden_size, vision.num_heads, vision.intermediate_size = 32, 1280, 16, 3420
    vision.out_hidden_size, vision.fullatt_block_indexes = 3584, [7, 15, 23, 31]
    return config
