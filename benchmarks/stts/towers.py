"""A random-weight model in the proportions of Qwen2.5-VL-3B, and a random scorer beside it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from vllm_prune.visual.scorers.stts import files
from vllm_prune.visual.scorers.stts.model import Scorer, Shape

from ..random_model import DEMO, draw, set_rope

WIDTH, DEPTH, HEADS, INNER = 512, 32, 8, 1368
"""Qwen2.5-VL-3B's tower is 1280 wide with 3420 inside the MLP, 32 blocks of which 4 attend to everything."""
LANGUAGE, LAYERS, LANGUAGE_INNER = 832, 36, 4480
"""Its language model is 2048 wide with 11008 inside the MLP, 36 layers: the same 0.4, to whole heads of 64."""
AFTER = 4
"""Blocks in front of the scorer, as in the paper."""
LENGTHS: dict[str, Any] = {"max_model_len": 16384, "max_num_batched_tokens": 16384, "max_num_seqs": 2}
"""Options of an engine that takes any of the videos in one prefill."""
CACHE = {"kv_cache_memory_bytes": 1 << 30}
"""Room for this model's keys and values at that length."""


def build(folder: Path | None = None) -> Path:
    """Write the checkpoint once and return its folder."""
    from transformers import AutoConfig

    folder = folder or Path(tempfile.gettempdir()) / f"vllm-prune-3b-{WIDTH}x{DEPTH}-{LANGUAGE}x{LAYERS}"
    if (folder / "done").exists():
        return folder
    model = draw(folder, _config(AutoConfig.from_pretrained(DEMO)))
    files.save(Scorer(Shape(WIDTH, HEADS, 4 * WIDTH, 2, AFTER)), folder / files.PLACE)
    tower = sum(p.numel() for p in model.model.visual.parameters())
    about = {"parameters": sum(p.numel() for p in model.parameters()), "tower": tower}
    (folder / "done").write_text(json.dumps(about))
    return folder


def _config(config: Any) -> Any:
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.num_hidden_layers, text.intermediate_size = LANGUAGE, LAYERS, LANGUAGE_INNER
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = LANGUAGE // 64, 1, 64
    set_rope(text, [8, 12, 12])
    text.layer_types = ["full_attention"] * LAYERS
    text.max_position_embeddings = 32768
    vision.depth, vision.hidden_size, vision.num_heads, vision.intermediate_size = DEPTH, WIDTH, HEADS, INNER
    vision.out_hidden_size, vision.fullatt_block_indexes = LANGUAGE, [7, 15, 23, 31]
    return config


def sizes(folder: Path) -> dict[str, int]:
    """Parameters of a built checkpoint, in all and in the tower."""
    return dict(json.loads((folder / "done").read_text()))


def film(frames: int, side: int, seed: int) -> np.ndarray:
    """A still page with one moving noisy box, uint8 [frames, side, side, 3]."""
    rng = np.random.default_rng(seed)
    page = rng.integers(0, 255, (side // 28, side // 28, 3), dtype=np.uint8).repeat(28, 0).repeat(28, 1)
    shots = np.repeat(page[None], frames, 0)
    for t in range(frames):
        top, left = (5 * t) % (side - 28), (9 * t) % (side - 28)
        shots[t, top : top + 28, left : left + 28] = rng.integers(0, 255, (28, 28, 3), dtype=np.uint8)
    return shots
