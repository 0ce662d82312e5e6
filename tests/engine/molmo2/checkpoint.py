"""Tiny random fp32 Molmo2 in the names of the authors' checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..checkpoints import byte_tokenizer
from . import remote

MARKS = {
    "image_patch_id": "<im_patch>",
    "image_col_id": "<im_col>",
    "image_start_token_id": "<im_start>",
    "image_end_token_id": "<im_end>",
    "low_res_image_start_token_id": "<low_res_im_start>",
    "frame_start_token_id": "<frame_start>",
    "frame_end_token_id": "<frame_end>",
    "image_low_res_id": "<im_low>",
}
VOCABULARY, EXTRA = 272, 16
VIT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    "image_default_input_size": [remote.HEIGHT, remote.WIDTH], "image_patch_size": remote.PATCH, "image_num_pos": 81,
}  # fmt: skip
# Blocks 4 and 1: one on either side of a cut, and not in the order of depth.
ADAPTER: dict[str, Any] = {
    "vit_layers": [-2, -5], "pooling_attention_mask": False, "hidden_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 16, "hidden_act": "silu", "intermediate_size": 96, "text_hidden_size": 128,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": VOCABULARY,
    "additional_vocab_size": EXTRA, "qkv_bias": False, "num_hidden_layers": 3, "intermediate_size": 192,
    "hidden_act": "silu", "max_position_embeddings": 2048, "use_qk_norm": True, "qk_norm_type": "qwen3",
    "layer_norm_eps": 1e-6, "norm_after": False, "rope_scaling_layers": None, "rope_theta": 10000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip


def build(folder: Path) -> Path:
    """Write configuration, weights, tokenizer, a random scorer and the code of the checkpoint."""
    from vllm_prune.visual.scorers.stts.files import PLACE, save
    from vllm_prune.visual.scorers.stts.model import Scorer, Shape

    folder.mkdir(parents=True)
    tokenizer = byte_tokenizer(("<|endoftext|>", "<|im_end|>", "<|image|>", "<|video|>", *MARKS.values()))
    assert len(tokenizer) <= VOCABULARY + EXTRA
    tokenizer.save_pretrained(folder)
    shutil.copy(remote.__file__, folder / "remote.py")
    config = {
        "architectures": ["Molmo2ForConditionalGeneration"],
        "model_type": "molmo2",
        "auto_map": {"AutoConfig": "remote.Molmo2Config", "AutoProcessor": "remote.Molmo2Processor"},
        "vit_config": VIT,
        "adapter_config": ADAPTER,
        "text_config": TEXT,
        "eos_token_id": tokenizer.eos_token_id,
        "dtype": "float32",
        "tie_word_embeddings": False,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in MARKS.items()},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "Molmo2Processor", "auto_map": {"AutoProcessor": "remote.Molmo2Processor"}})
    )
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    save_file(weights(), folder / "model.safetensors")
    torch.manual_seed(1)
    scorer = Scorer(Shape(VIT["hidden_size"], 4, 64, remote.SIDE, 1))
    with torch.no_grad():
        # Scores that spread, yet do not saturate.
        scorer.mlp.w3.weight.mul_(4)
    save(scorer, folder / PLACE)
    return folder


def weights() -> dict[str, torch.Tensor]:
    """Random weights by their names in the authors' checkpoints."""
    shapes: dict[str, tuple[int, ...]] = {}
    width, vit, text = VIT["hidden_size"], "model.vision_backbone.image_vit.", "model.transformer."

    def linear(name: str, out: int, into: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, into)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    shapes[f"{vit}positional_embedding"] = (VIT["image_num_pos"], width)
    linear(f"{vit}patch_embedding", width, remote.PATCH**2 * 3)
    for i in range(VIT["num_hidden_layers"] - 1):
        block = f"{vit}transformer.resblocks.{i}."
        for name in ("wq", "wk", "wv", "wo"):
            linear(f"{block}attention.{name}", width, width)
        linear(f"{block}feed_forward.w1", VIT["intermediate_size"], width)
        linear(f"{block}feed_forward.w2", width, VIT["intermediate_size"])
        for name in ("attention_norm", "ffn_norm"):
            shapes[f"{block}{name}.weight"] = shapes[f"{block}{name}.bias"] = (width,)
    pool, into = "model.vision_backbone.image_pooling_2d.", width * len(ADAPTER["vit_layers"])
    for name in ("wq", "wk", "wv"):
        linear(pool + name, ADAPTER["hidden_size"], into)
    linear(pool + "wo", ADAPTER["hidden_size"], ADAPTER["hidden_size"])
    project = "model.vision_backbone.image_projector."
    for name in ("w1", "w3"):
        linear(project + name, ADAPTER["intermediate_size"], ADAPTER["hidden_size"], bias=False)
    linear(project + "w2", TEXT["hidden_size"], ADAPTER["intermediate_size"], bias=False)
    hidden, size = TEXT["hidden_size"], TEXT["head_dim"]
    heads = TEXT["num_attention_heads"] + 2 * TEXT["num_key_value_heads"]
    shapes[f"{text}wte.embedding"], shapes[f"{text}wte.new_embedding"] = (VOCABULARY, hidden), (EXTRA, hidden)
    for i in range(TEXT["num_hidden_layers"]):
        block = f"{text}blocks.{i}."
        linear(f"{block}self_attn.att_proj", heads * size, hidden, bias=False)
        linear(f"{block}self_attn.attn_out", hidden, TEXT["num_attention_heads"] * size, bias=False)
        shapes[f"{block}self_attn.q_norm.weight"] = shapes[f"{block}self_attn.k_norm.weight"] = (size,)
        linear(f"{block}mlp.ff_proj", 2 * TEXT["intermediate_size"], hidden, bias=False)
        linear(f"{block}mlp.ff_out", hidden, TEXT["intermediate_size"], bias=False)
        shapes[f"{block}attn_norm.weight"] = shapes[f"{block}ff_norm.weight"] = (hidden,)
    shapes[f"{text}ln_f.weight"] = (hidden,)
    linear("lm_head", VOCABULARY, hidden, bias=False)
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=random) * (0.12 if len(shape) > 1 else 0.05)
        + (1.0 if "norm.weight" in name or "ln_f" in name else 0.0)
        for name, shape in shapes.items()
    }
