"""A Qwen2.5-VL checkpoint with random weights, large enough that prefill and tower cost what they cost in earnest."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parent / "demo_model" / "checkpoint"
FILES = (
    "tokenizer",
    "special_tokens",
    "added_tokens",
    "vocab",
    "merges",
    "preprocessor",
    "processor",
    "chat_template",
    "video",
)


def build(folder: Path | None = None, layers: int = 12, hidden: int = 768) -> Path:
    """Write the checkpoint once and return its folder.

    Args:
        folder: where; by default a folder of the temporary directory that is kept between runs.
        layers, hidden: size of the language model; 12 x 768 gives about 130M parameters with the tower.

    The tokenizer and processor are the demo model's, with room for 2,048 visual tokens per image.
    """
    from transformers import AutoConfig

    folder = folder or Path(tempfile.gettempdir()) / f"vllm-prune-random-{layers}x{hidden}"
    if (folder / "done").exists():
        return folder
    config = AutoConfig.from_pretrained(DEMO)
    _enlarge(config, layers, hidden)
    parameters = sum(p.numel() for p in draw(folder, config).parameters())
    (folder / "done").write_text(json.dumps({"parameters": parameters}))
    return folder


def lay_out(folder: Path) -> None:
    """Make a checkpoint's folder with the demo model's tokenizer and processor."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in DEMO.iterdir():
        if file.name.startswith(FILES):
            shutil.copy(file, folder / file.name)


def set_rope(text: Any, section: list[int], **more: Any) -> None:
    """Change a language model's rotary settings; the sections sum to half of the head's width."""
    rope = dict(getattr(text, "rope_parameters", None) or text.rope_scaling)
    text.rope_parameters = text.rope_scaling = rope | {"mrope_section": section, **more}


def draw(folder: Path, config: Any) -> Any:
    """Write random bfloat16 weights of a configuration beside the demo model's tokenizer and processor; the model."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    lay_out(folder)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return model


def _enlarge(config: Any, layers: int, hidden: int) -> None:
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.num_hidden_layers = hidden, layers
    text.intermediate_size = 4 * hidden
    text.num_attention_heads, text.num_key_value_heads = hidden // 64, hidden // 256
    text.head_dim = 64
    set_rope(text, [8, 12, 12])
    text.layer_types = ["full_attention"] * layers
    text.max_position_embeddings = 32768
    vision.depth, vision.hidden_size, vision.num_heads = 8, 512, 8
    vision.intermediate_size, vision.out_hidden_size = 2048, hidden
    vision.fullatt_block_indexes = [3, 7]


def parameters(folder: Path) -> int:
    """Parameters of a built checkpoint."""
    return int(json.loads((folder / "done").read_text())["parameters"])
