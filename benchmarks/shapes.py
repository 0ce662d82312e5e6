"""Shapes of Qwen2.5-VL and Qwen3-VL without their weights, for timing: vLLM fills them with random values as it starts.

Two sizes of each: the published model's, for a GPU, and a tiny one, for trying the same commands on a CPU; and a small
Qwen3-VL that a CPU can time. A folder holds a configuration, the demo model's tokenizer and a processor, and is written
without any network.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from .random_model import DEMO

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
POSITIONS = 40960
GIB = 1 << 30


class Family(StrEnum):
    """A family of models by its type in a configuration."""

    qwen2_5_vl = "qwen2_5_vl"
    qwen3_vl = "qwen3_vl"


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Attributes:
        family: of its architecture.
        layers, width, inner, heads, kv_heads, head: of the language model; inner is the MLP's width.
        depth, tower_width, tower_inner, tower_heads: of the vision tower.
        rope: sections of the rotary dimensions for time, height and width.
    """

    family: Family
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    depth: int
    tower_width: int
    tower_inner: int
    tower_heads: int
    rope: tuple[int, int, int]

    @property
    def patch(self) -> int:
        """Pixels per side of a patch."""
        return 14 if self.family is Family.qwen2_5_vl else 16

    @property
    def cell(self) -> int:
        """Pixels per side of a visual token: two patches."""
        return 2 * self.patch

    @property
    def full_blocks(self) -> tuple[int, ...]:
        """Blocks of the tower that attend to everything, for the family whose others attend to windows."""
        return tuple(range(self.depth // 4 - 1, self.depth, self.depth // 4)) if self.depth >= 8 else (self.depth - 1,)

    @property
    def deepstack(self) -> tuple[int, ...]:
        """Blocks of the tower whose outputs are added to the language model's first layers, for the other family."""
        return (8, 16, 24) if self.depth > 24 else (0,)

    @property
    def largest_media(self) -> int:
        """Visual tokens that the processor shrinks media to."""
        return 8192 if self.depth >= 8 else 256

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the KV cache in bfloat16, over all layers."""
        return self.layers * self.kv_heads * self.head * 2 * 2

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in bfloat16; the vocabulary is the demo model's, a few hundred words."""
        attention = self.width * self.head * (2 * self.heads + 2 * self.kv_heads)
        language = self.layers * (attention + 3 * self.width * self.inner)
        matrices = 3 if self.family is Family.qwen2_5_vl else 2
        tower = self.depth * (4 * self.tower_width**2 + matrices * self.tower_width * self.tower_inner)
        return 2 * (language + tower)

    @classmethod
    def of(cls, folder: Path) -> Shape:
        """Sizes of a checkpoint that is in a folder already."""
        config = json.loads((folder / "config.json").read_text())
        text, vision = config["text_config"], config["vision_config"]
        heads = text["num_attention_heads"]
        return cls(
            Family(config["model_type"]), text["num_hidden_layers"], text["hidden_size"], text["intermediate_size"],
            heads, text["num_key_value_heads"], text.get("head_dim") or text["hidden_size"] // heads, vision["depth"],
            vision["hidden_size"], vision["intermediate_size"], vision["num_heads"],
            tuple(text["rope_parameters"]["mrope_section"]),
        )  # fmt: skip


SEVEN_B = Shape(Family.qwen2_5_vl, 28, 3584, 18944, 28, 4, 128, 32, 1280, 3420, 16, (16, 24, 24))
EIGHT_B = Shape(Family.qwen3_vl, 36, 4096, 12288, 32, 8, 128, 27, 1152, 4304, 16, (24, 20, 20))
SMALL_3 = Shape(Family.qwen3_vl, 12, 768, 3072, 12, 3, 64, 8, 512, 2048, 8, (12, 10, 10))
TINY_2_5 = Shape(Family.qwen2_5_vl, 2, 128, 256, 4, 2, 32, 3, 64, 128, 4, (4, 6, 6))
TINY_3 = Shape(Family.qwen3_vl, 2, 128, 256, 4, 2, 32, 3, 64, 128, 4, (6, 5, 5))


def build(shape: Shape, folder: Path | None = None) -> Path:
    """Write the checkpoint's folder once and return it; serve it with `--load-format dummy`."""
    name = f"vllm-prune-{shape.family}-{shape.layers}x{shape.width}-{shape.depth}x{shape.tower_width}"
    folder = folder or Path(tempfile.gettempdir()) / name
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for file in TOKENIZER:
        shutil.copy(DEMO / file, folder / file)
    # Without this file vLLM asks the hub for sampling defaults.
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    (folder / "config.json").write_text(json.dumps(configuration(shape), indent=1))
    (folder / "processor_config.json").write_text(json.dumps(processor(shape), indent=1))
    (folder / "done").write_text(json.dumps({"parameters": shape.weight_bytes // 2}))
    return folder


def configuration(shape: Shape) -> dict[str, Any]:
    """The model's configuration; what is not a size is the demo model's."""
    demo = json.loads((DEMO / "config.json").read_text())
    old = demo["text_config"]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(shape.rope)}
    text = {
        **{key: old[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "hidden_act", "rms_norm_eps")},
        "hidden_size": shape.width, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head,
        "max_position_embeddings": POSITIONS, "tie_word_embeddings": False, "rope_parameters": rope,
    }  # fmt: skip
    vision = {
        "depth": shape.depth, "hidden_size": shape.tower_width, "num_heads": shape.tower_heads,
        "intermediate_size": shape.tower_inner, "out_hidden_size": shape.width, "patch_size": shape.patch,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
    }  # fmt: skip
    tokens = {key: value for key, value in demo.items() if key.endswith("_token_id")}
    if shape.family is Family.qwen2_5_vl:
        return demo | {
            "text_config": text | {"model_type": "qwen2_5_vl_text", "layer_types": ["full_attention"] * shape.layers},
            "vision_config": demo["vision_config"] | vision | {"fullatt_block_indexes": list(shape.full_blocks)},
        }
    special = json.loads((DEMO / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in special}
    rope["mrope_interleaved"] = True
    return tokens | {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "dtype": "bfloat16",
        "tie_word_embeddings": False,
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
        "text_config": text | {"model_type": "qwen3_vl_text"},
        "vision_config": vision | {
            "model_type": "qwen3_vl", "hidden_act": "gelu_pytorch_tanh", "num_position_embeddings": 2304,
            "deepstack_visual_indexes": list(shape.deepstack),
        },
    }  # fmt: skip


def processor(shape: Shape) -> dict[str, Any]:
    """The processor's configuration: the demo model's, for this family's patches, with room for long videos."""
    demo = json.loads((DEMO / "processor_config.json").read_text())
    patches = {"patch_size": shape.patch}
    # vLLM warms up with media of the largest size, so a tiny model's is small.
    room = {"size": {"shortest_edge": 4 * shape.cell**2, "longest_edge": shape.largest_media * shape.cell**2}}
    if shape.family is Family.qwen2_5_vl:
        return demo | {kind: demo[kind] | room for kind in ("image_processor", "video_processor")}
    video = {"video_processor_type": "Qwen3VLVideoProcessor", "cap_pixels_per_frame": False, **patches, **room}
    return {
        "processor_class": "Qwen3VLProcessor",
        "image_processor": demo["image_processor"] | patches | room,
        "video_processor": demo["video_processor"] | video,
    }
