"""Checkpoints in formats that vLLM reads and transformers does not: of transformers' twin, and a copy for the engine.

A recipe gives transformers' model as in `recipes`. A rewrite changes the copy beside it into what vLLM loads; where
vLLM expects a configuration class from the checkpoint's own code, it registers one of ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .recipes import SIGLIP, _plain_text


def rewrite(folder: Path, weights: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Replace the tensors and the configuration of a checkpoint."""
    save_file(
        {name: each.contiguous() for name, each in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(settings))


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of a checkpoint."""
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


def renamed(weights: dict[str, Tensor], rules: dict[str, str]) -> dict[str, Tensor]:
    """Tensors under other names: every rule, a pattern and what replaces it, is applied in turn."""
    out = {}
    for name, tensor in weights.items():
        for pattern, new in rules.items():
            name = re.sub(pattern, new, name)
        out[name] = tensor
    return out


def called(architecture: str, before: Callable[[Path], None] = lambda folder: None) -> Callable[[Path], None]:
    """A rewrite that changes the architecture's name alone, behind another rewrite where the format needs one."""

    def change(folder: Path) -> None:
        before(folder)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": [architecture]}))

    return change


def internvl_twin(tokenizer: Any, folder: Path) -> Any:
    """transformers' InternVL, whose tower and projector are those of InternVL Chat under other names."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    tower = {key: SIGLIP[key] for key in SIGLIP if key not in ("model_type", "image_size", "patch_size")}
    config = InternVLConfig(
        vision_config={
            **tower, "image_size": [112, 112], "patch_size": [14, 14], "use_mean_pooling": True, "attention_bias": True,
        },
        text_config={"model_type": "qwen2", **_plain_text(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )  # fmt: skip
    return InternVLForConditionalGeneration(config)


INTERNVL_CHAT_NAMES = {
    r"^multi_modal_projector\.layer_norm": "mlp1.0",
    r"^multi_modal_projector\.linear_1": "mlp1.1",
    r"^multi_modal_projector\.linear_2": "mlp1.3",
    r"^vision_tower\.": "vision_model.",
    r"embeddings\.cls_token": "embeddings.class_embedding",
    r"embeddings\.position_embeddings": "embeddings.position_embedding",
    r"embeddings\.patch_embeddings\.projection": "embeddings.patch_embedding",
    r"encoder\.layer\.": "encoder.layers.",
    r"attention\.projection_layer": "attn.proj",
    r"layernorm_before": "norm1",
    r"layernorm_after": "norm2",
    r"lambda_([12])": r"ls\1",
}


def internvl_chat(folder: Path) -> None:
    """InternVL Chat: images in tiles of 16 visual tokens, a frame of a video is one such tile after its number."""
    from transformers import AutoConfig, PreTrainedConfig, Qwen2Config

    class InternVLChatConfig(PreTrainedConfig):
        model_type = "internvl_chat"
        sub_configs: ClassVar = {"text_config": Qwen2Config}

        def __init__(self, vision_config: Any = None, llm_config: Any = None, **more: Any) -> None:
            self.vision_config = PreTrainedConfig(**(vision_config or {}))
            self.text_config = Qwen2Config(**(llm_config or {}))
            super().__init__(**more)

    AutoConfig.register("internvl_chat", InternVLChatConfig, exist_ok=True)
    weights, settings = read(folder)
    for i in range(SIGLIP["num_hidden_layers"]):
        at = f"vision_tower.encoder.layer.{i}.attention"
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{at}.{part}_proj.{kind}") for part in "qkv"]
            weights[f"vision_model.encoder.layers.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    tower = {
        **settings["vision_config"],
        "image_size": 112,
        "patch_size": 14,
        "qkv_bias": True,
        "qk_normalization": False,
        "initializer_factor": 1.0,
    }
    text = {**settings["text_config"], "architectures": ["Qwen2ForCausalLM"]}
    rewrite(folder, renamed(weights, INTERNVL_CHAT_NAMES), {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "vision_config": tower,
        "llm_config": text, "downsample_ratio": 0.5, "force_image_size": 112, "select_layer": -1, "ps_version": "v2",
        "use_thumbnail": True,
        "dynamic_image_size": True, "min_dynamic_patch": 1, "max_dynamic_patch": 6, "tie_word_embeddings": False,
    })  # fmt: skip


def with_head(folder: Path) -> None:
    """A head that predicts one token more (MTP): the hidden state once more, and a little of a copy of the last layer.

    So it guesses that a token comes twice, which random models do often enough for some of the guesses to be taken.
    """
    weights, settings = read(folder)
    last = "model.language_model.layers.2."
    layer = {name.removeprefix(last): each for name, each in weights.items() if name.startswith(last)}
    quiet = ("o_proj.weight", "down_proj.weight")
    head = {f"layers.0.{name}": each * (0.05 if name.endswith(quiet) else 1) for name, each in layer.items()}
    norm = weights["model.language_model.norm.weight"]
    head |= dict.fromkeys(("norm.weight", "pre_fc_norm_hidden.weight", "pre_fc_norm_embedding.weight"), norm)
    text = settings["text_config"]
    same = torch.eye(text["hidden_size"])
    head["fc.weight"] = torch.cat([torch.zeros_like(same), same], 1)
    # Where EXAONE 4.5's head looks for them.
    more = {"num_nextn_predict_layers": 1, "vocab_size": text["vocab_size"]}
    rewrite(folder, {**weights, **{f"mtp.{name}": each.clone() for name, each in head.items()}}, settings | more)


def cosmos3(folder: Path) -> None:
    """Cosmos 3 of its twin Qwen3-VL: the names without their parts, the tensors in a folder of their own."""
    weights, settings = read(folder)
    flat = renamed(weights, {r"^model\.(language_model|visual)\.": ""})
    settings |= {"architectures": ["Cosmos3ForConditionalGeneration"], "model_type": "cosmos3_omni"}
    rewrite(folder, flat, settings)
    (folder / "transformer").mkdir()
    (folder / "model.safetensors").rename(folder / "transformer" / "model.safetensors")


OVIS_STARTS = ("<ovis_image_start>", "<ovis_image_end>", "<ovis_video_start>", "<ovis_video_end>")
OVIS_TOKENS = ("<image>", "<video>", "<ovis_visual_atom>", *OVIS_STARTS)
STEP_TOKENS = ("<im_patch>", "<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>")
STEP_LAYERS = ["full_attention", "sliding_attention", "full_attention"]


def step3p7_twin(tokenizer: Any, folder: Path) -> Any:
    """Step 3.7: pictures of 169 visual tokens, with windows of 81 before them.

    The last layer has one expert only, beside the shared one: vLLM's router for CPUs does not know how several are
    weighed.
    """
    from transformers import Step3p7Config, Step3p7ForConditionalGeneration

    text = _plain_text(tokenizer, head_dim=64, layer_types=STEP_LAYERS, sliding_window=64, pad_token_id=0)
    del text["rope_parameters"]
    text |= {"mlp_layer_types": ["dense", "dense", "sparse"], "n_routed_experts": 1, "num_experts_per_tok": 1}
    config = Step3p7Config(
        text_config={**text, "moe_intermediate_size": 64, "share_expert_dim": 64, "rms_norm_eps": 1e-6},
        vision_config={"width": 64, "layers": 2, "heads": 2, "mlp_ratio": 2.0},
        image_token_id=tokenizer.convert_tokens_to_ids("<im_patch>"),
        tie_word_embeddings=False,
    )
    return Step3p7ForConditionalGeneration(config)


def step3p7(folder: Path) -> None:
    """The configuration as the hub has it; the tensors are saved under the hub's names."""
    from transformers import AutoConfig, PreTrainedConfig

    try:
        from vllm.transformers_utils.configs.step3p5 import Step3p5Config
    except ImportError:
        # vLLM 0.33 takes the class of transformers.
        from transformers import Step3p7TextConfig as Step3p5Config

    class StepConfig(PreTrainedConfig):
        model_type = "step3p7_of_the_hub"
        sub_configs: ClassVar = {"text_config": Step3p5Config}

        def __init__(self, vision_config: Any = None, text_config: Any = None, **more: Any) -> None:
            self.vision_config = PreTrainedConfig(**(vision_config or {}))
            self.text_config = Step3p5Config(**(text_config or {}))
            super().__init__(**more)

    AutoConfig.register(StepConfig.model_type, StepConfig, exist_ok=True)
    weights, settings = read(folder)
    twin = settings["text_config"]
    same = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "head_dim")
    same += ("rms_norm_eps", "moe_intermediate_size", "share_expert_dim", "layer_types", "sliding_window")
    same += ("max_position_embeddings",)
    sliding = {
        "attention_type": "sliding_attention",
        "num_attention_heads": 4,
        "num_attention_groups": 2,
        "head_dim": 64,
    }
    text = {key: twin[key] for key in same} | {
        "model_type": "step3p5", "architectures": ["Step3p5ForCausalLM"], "num_attention_groups": 2,
        "moe_num_experts": 1, "moe_top_k": 1, "moe_layers_enum": "2", "rope_theta": 10000.0,
        "moe_router_activation": "softmax",
        "use_head_wise_attn_gate": True, "attention_other_setting": sliding, "tie_word_embeddings": False,
    }  # fmt: skip
    tower = {"width": 64, "layers": 2, "heads": 2, "mlp_ratio": 2.0, "image_size": 728, "patch_size": 14}
    tower |= {"hidden_act": "quick_gelu", "ls_init_value": 0.1, "output_dim": None, "use_abs_posemb": True}
    tower |= {"use_ln_pre": True, "use_ln_post": False, "use_cls_token": False, "use_rope2d": True}
    rewrite(folder, {name: _columns_first(name, each) for name, each in weights.items()}, {
        "architectures": ["Step3p7ForConditionalGeneration"], "model_type": StepConfig.model_type, "text_config": text,
        "vision_config": tower, "hidden_size": twin["hidden_size"], "projector_bias": False,
        "image_token_id": settings["image_token_id"], "tie_word_embeddings": False,
    })  # fmt: skip


def _columns_first(name: str, tensor: Tensor) -> Tensor:
    """Queries and keys of the tower with the halves of each head the other way round.

    Of a patch's row and column, transformers 5.19 rotates the first half of a head by the row, vLLM 0.32 by the column.
    """
    if ".attn.in_proj_" not in name:
        return tensor
    q, k, v = tensor.chunk(3)
    q, k = (part.unflatten(0, (2, 2, -1)).flip(1).flatten(0, 2) for part in (q, k))
    return torch.cat([q, k, v])
