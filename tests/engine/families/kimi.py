"""Tiny checkpoints of Kimi-K2.5 and Kimi-VL from transformers' Kimi-K2.5, as the towers of single pictures are one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vllm_prune.grid import Grid

from .recipes import _plain_text
from .recipes_of_vllm import read, renamed, rewrite

TOKENS = ("<|media_begin|>", "<|media_content|>", "<|media_pad|>", "<|media_end|>")
PATCH, MERGE = 14, 2
LATENT: dict[str, int] = {
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
}
"""Widths of latent attention (MLA)."""
ROUTER = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
NAMES = {
    # transformers 5.19 saves these as it does not read them from the hub.
    r"^language_model\.model\.blocks\.": "language_model.model.layers.",
    r"^vision_tower\.encoder\.patch_embed": "vision_tower.patch_embed",
    r"^model\.mm_projector": "mm_projector",
}


def twin(tokenizer: Any, folder: Path, **widths: int) -> Any:
    """Kimi-K2.5: two dense layers, then one of four experts and a shared one."""
    from transformers import Kimi_K25Config, Kimi_K25ForConditionalGeneration

    text = _plain_text(tokenizer, num_key_value_heads=4, **{**LATENT, **widths})
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
    experts |= {"moe_intermediate_size": 64, "first_k_dense_replace": 2, "routed_scaling_factor": 1.0}
    tower = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 256}
    config = Kimi_K25Config(
        text_config={"model_type": "deepseek_v3", **text, **experts},
        vision_config={**tower, "pos_emb_height": 16, "pos_emb_width": 16},
        projection_hidden_size=128,
        image_token_id=tokenizer.convert_tokens_to_ids("<|media_pad|>"),
        tie_word_embeddings=False,
    )
    return Kimi_K25ForConditionalGeneration(config)


def twin_as_cached(tokenizer: Any, folder: Path) -> Any:
    """The same with latents of the one size that vLLM's CPU kernel takes."""
    return twin(tokenizer, folder, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64)


def k25(folder: Path) -> None:
    """Kimi-K2.5 under the hub's names, and the settings of its processor."""
    _answers_to_its_own_names()
    weights, settings = read(folder)
    settings["text_config"] |= ROUTER
    # Beside the names of today vLLM asks for one of the hub's configuration.
    settings |= {"architectures": ["KimiK25ForConditionalGeneration"], "use_unified_vision_chunk": True}
    rewrite(folder, renamed(weights, NAMES), settings)
    media = {
        "patch_size": PATCH, "merge_kernel_size": MERGE, "temporal_merge_kernel_size": 4, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3, "in_patch_limit": 1024, "in_patch_limit_each_frame": 256, "in_patch_limit_video": None,
        "patch_limit_on_one_side": 64, "fixed_output_tokens": None,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps({"media_proc_cfg": media}))


def _answers_to_its_own_names() -> None:
    """Let the library behind numba, with which vLLM prepares pictures, have no `__dict__`.

    It answers to every name with a function, also to this one, over which vLLM's search for kernels on CPUs stumbles.
    """
    from llvmlite.binding import ffi

    if hasattr(ffi.lib, "__dict__"):
        answer = ffi._lib_wrapper.__getattr__

        def named(self: Any, name: str) -> Any:
            if name == "__dict__":
                raise AttributeError(name)
            return answer(self, name)

        ffi._lib_wrapper.__getattr__ = named


def vl(folder: Path) -> None:
    """Kimi-VL, and a processor in the place of the one that comes with its checkpoints."""
    from transformers import AutoConfig, AutoProcessor
    from vllm.transformers_utils.configs.kimi_vl import KimiVLConfig

    AutoConfig.register(KimiVLConfig.model_type, KimiVLConfig, exist_ok=True)
    AutoProcessor.register(KimiVLConfig, _processor_class(), exist_ok=True)
    weights, settings = read(folder)
    projector = {r"^mm_projector\.proj\.0": "mm_projector.linear_1", r"^mm_projector\.proj\.2": "mm_projector.linear_2"}
    names = {**NAMES, **projector, r"^mm_projector": "multi_modal_projector"}
    tower = settings["vision_config"]
    tower |= {f"init_pos_emb_{side}": tower[f"pos_emb_{side}"] for side in ("height", "width")}
    rewrite(folder, renamed(weights, names), {
        "architectures": ["KimiVLForConditionalGeneration"], "model_type": KimiVLConfig.model_type,
        "text_config": settings["text_config"] | ROUTER, "vision_config": {**tower, "model_type": "moonvit"},
        "media_placeholder_token_id": settings["image_token_id"], "tie_word_embeddings": False,
    })  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "TinyKimiVLProcessor"}))


def _processor_class() -> type[Any]:
    from transformers import BatchFeature, ProcessorMixin

    class Images:
        patch_size, merge_kernel_size, in_token_limit = PATCH, (MERGE, MERGE), 1024

    class TinyKimiVLProcessor(ProcessorMixin):
        """Pictures are drawn smaller where they are too large, padded, and cut into patches row by row."""

        attributes = ("tokenizer",)
        tokenizer_class = "AutoTokenizer"
        image_token = "<|media_pad|>"
        image_processor = Images()

        def __init__(self, tokenizer: Any = None, **more: Any) -> None:
            self.tokenizer = tokenizer

        @classmethod
        def from_pretrained(cls, path: str, **more: Any) -> Any:
            from transformers import AutoTokenizer

            return cls(AutoTokenizer.from_pretrained(path))

        def __call__(self, text: Any = None, images: Any = None, **more: Any) -> Any:
            pixels, sizes = zip(*map(patches, images or ()), strict=True) if images else ((), ())
            data: dict[str, Any] = dict(self.tokenizer(text)) if text is not None else {}
            if images:
                data |= {"pixel_values": torch.cat(pixels), "image_grid_hws": torch.tensor(sizes)}
            return BatchFeature(data)

    return TinyKimiVLProcessor


def patches(image: Image.Image) -> tuple[Tensor, tuple[int, int]]:
    """A picture as patches [rows * columns, 3, 14, 14] in [-1, 1], and its rows and columns."""
    width, height = image.size
    count = (width // PATCH) * (height // PATCH)
    if count > 1024:
        scale = math.sqrt(1024 / count)
        image = image.resize((int(width * scale), int(height * scale)))
    side = PATCH * MERGE
    rows, cols = (-(-edge // side) * MERGE for edge in reversed(image.size))
    canvas = np.zeros((rows * PATCH, cols * PATCH, 3), dtype=np.float32)
    canvas[: image.size[1], : image.size[0]] = np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1
    cut = torch.from_numpy(canvas).unflatten(0, (rows, PATCH)).unflatten(2, (cols, PATCH))
    return cut.permute(0, 2, 4, 1, 3).flatten(0, 1).contiguous(), (rows, cols)


def size_of(fields: dict[str, Any]) -> Tensor:
    """Frames, rows and columns of an item's patches, [3]."""
    size = fields["grid_thws"] if "grid_thws" in fields else fields["image_grid_hws"]
    return size if len(size) == 3 else torch.cat([torch.ones_like(size[:1]), size])


def grid(fields: dict[str, Any]) -> Grid:
    """Visual tokens of an item; all frames of a piece of a video share them."""
    _, rows, cols = size_of(fields).tolist()
    return Grid(1, rows // MERGE, cols // MERGE)


def tower(hf: Any, modality: str, fields: dict[str, Any]) -> Tensor:
    """A picture, or a piece of a video; `get_image_features` of transformers 5.19 fails for the latter."""
    pooled = hf.model.vision_tower(fields["pixel_values"], grid_thw=size_of(fields)[None]).pooler_output
    rows: Tensor = hf.model.mm_projector(pooled)
    return rows.flatten(0, 1)
