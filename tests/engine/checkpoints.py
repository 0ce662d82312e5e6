"""Tiny random fp32 checkpoints of the supported families, complete with tokenizer and processors.

Random weights suffice here: an answer depends on every kept row and its position, and is compared with
transformers running the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
CELL = {"qwen2_5_vl": 28, "qwen3_vl": 32}
"""Pixels per side of one merged cell."""

_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{% if m['content'] is string %}{{m['content']}}{% else %}"
    "{% for c in m['content'] %}{% if 'image' in c['type'] %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'video' in c['type'] %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{c['text']}}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
# vLLM normalises videos with the image processor's mean and std, so the two must agree.
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
_VISION: dict[str, Any] = {
    "hidden_size": 128,
    "num_heads": 4,
    "intermediate_size": 256,
    "out_hidden_size": 256,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}


def build(family: str, folder: Path) -> Path:
    """Write the checkpoint of a family into a new folder."""
    folder.mkdir(parents=True)
    tokenizer = byte_tokenizer(_SPECIAL)
    model = {"qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl}[family](tokenizer, folder)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.08)
    model.save_pretrained(folder)
    random_scorer(family, 1, folder)
    # Without this file vLLM asks the hub for sampling defaults.
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    return folder


def random_scorer(family: str, after: int, folder: Path | None = None) -> Any:
    """A scorer for the tower of a family, written beside its checkpoint if a folder is given."""
    from vllm_prune.visual.scorers.stts.files import PLACE, save
    from vllm_prune.visual.scorers.stts.model import Scorer, Shape

    torch.manual_seed(after)
    scorer = Scorer(Shape(_VISION["hidden_size"], 4, 64, _VISION["spatial_merge_size"], after))
    with torch.no_grad():
        # Scores that spread, yet do not saturate.
        scorer.mlp.w3.weight.mul_(4)
    if folder is not None:
        save(scorer, folder / PLACE)
    return scorer.eval().requires_grad_(False)


def byte_tokenizer(special: Sequence[str]) -> Any:
    """One token per byte, so that no vocabulary has to be downloaded, and special ones that no text gives."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen2TokenizerFast

    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=raw,
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(special),
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _special_ids(tokenizer: Any) -> dict[str, int]:
    named = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in named.items()}


def _text_config(tokenizer: Any, rope: dict[str, Any], **more: Any) -> dict[str, Any]:
    ids = tokenizer.convert_tokens_to_ids
    return {
        **TEXT,
        "bos_token_id": ids("<|endoftext|>"),
        "eos_token_id": ids("<|im_end|>"),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **rope},
        **more,
    }


def qwen2_vl_processors() -> tuple[Any, Any]:
    """Processors of images and videos that Qwen2-VL and its descendants share."""
    from transformers import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    images = Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 1024 * 1024}, **_HALF)
    videos = Qwen2VLVideoProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 768}, **_HALF)
    return images, videos


def _qwen2_5_vl(tokenizer: Any, folder: Path) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    images, videos = qwen2_vl_processors()
    Qwen2_5_VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=_TEMPLATE
    ).save_pretrained(folder)
    # Windows of 4 x 4 cells, so that images of more than one window exist at test sizes.
    tower = {"depth": 3, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    config = Qwen2_5_VLConfig(
        text_config=_text_config(tokenizer, {"mrope_section": [8, 12, 12]}, tie_word_embeddings=False),
        vision_config={**_VISION, **tower},
        tie_word_embeddings=False,
        **_special_ids(tokenizer),
    )
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config).float()


def _qwen3_vl(tokenizer: Any, folder: Path) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    edges = {"shortest_edge": 64 * 64, "longest_edge": 1024 * 1024}
    images = Qwen2VLImageProcessor(patch_size=16, size=edges, **_HALF)
    videos = Qwen3VLVideoProcessor(size={**edges, "longest_edge": 32 * 32 * 768}, cap_pixels_per_frame=False, **_HALF)
    Qwen3VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=_TEMPLATE
    ).save_pretrained(folder)
    tower = {"depth": 4, "patch_size": 16, "num_position_embeddings": 256, "deepstack_visual_indexes": [0, 2]}
    rope = {"mrope_section": [12, 10, 10], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=_text_config(tokenizer, rope, head_dim=64),
        vision_config={**_VISION, **tower},
        tie_word_embeddings=False,
        **_special_ids(tokenizer),
    )
    torch.manual_seed(0)
    return Qwen3VLForConditionalGeneration(config).float()
