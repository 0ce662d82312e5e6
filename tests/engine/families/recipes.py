"""Tiny random fp32 checkpoints of further families, complete with tokenizer and processors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..checkpoints import (
    _HALF,
    _SPECIAL,
    _TEMPLATE,
    _VISION,
    _qwen3_vl,
    _special_ids,
    _text_config,
    byte_tokenizer,
    qwen2_vl_processors,
)

Recipe = Callable[[Any, Path], Any]
"""Writes the processors of a family beside its tokenizer, and gives transformers' model."""

Change = Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]
"""From a tensor as transformers saves it to one as vLLM loads it."""

SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "image_size": 112,
    "patch_size": 14,
}


def build(recipe: Recipe, special: tuple[str, ...], folder: Path) -> Path:
    """Write the checkpoint of a recipe into a new folder.

    Args:
        recipe: of the family.
        special: tokens of the family beside those of Qwen-VL.
        folder: must not be there yet.
    """
    folder.mkdir(parents=True)
    tokenizer = byte_tokenizer((*_SPECIAL, *special))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = recipe(tokenizer, folder).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The short convolutions of delta nets keep their own scale, or their states vanish.
            if parameter.dim() >= 2 and "conv1d" not in name:
                parameter.normal_(0, 0.08)
    model.save_pretrained(folder)
    # Without this file vLLM asks the hub for sampling defaults.
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    return folder


def _plain_text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Configuration of a language model with one position per token."""
    return _text_config(tokenizer, {}, **{"tie_word_embeddings": False, **more})


def _qwen3_processors(tokenizer: Any, folder: Path) -> None:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    edges = {"shortest_edge": 64 * 64, "longest_edge": 1024 * 1024}
    images = Qwen2VLImageProcessor(patch_size=16, size=edges, **_HALF)
    videos = Qwen3VLVideoProcessor(size={**edges, "longest_edge": 32 * 32 * 768}, cap_pixels_per_frame=False, **_HALF)
    Qwen3VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=_TEMPLATE
    ).save_pretrained(folder)


QWEN3_TOWER = {**_VISION, "depth": 4, "patch_size": 16, "num_position_embeddings": 256}
DELTA_NETS = {
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
}


def qwen3_5(tokenizer: Any, folder: Path) -> Any:
    """Two layers of gated delta nets, then one of full attention; rotation of a quarter of each head."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    _qwen3_processors(tokenizer, folder)
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(**_qwen3_5_parts(tokenizer)))


def qwen3_5_full(tokenizer: Any, folder: Path) -> Any:
    """Full attention in all layers, as vLLM's CPU kernel of delta nets takes no speculation in float32."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    _qwen3_processors(tokenizer, folder)
    parts = _qwen3_5_parts(tokenizer)
    parts["text_config"] |= {"layer_types": ["full_attention"] * 3, "mtp_num_hidden_layers": 1}
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(**parts))


def qwen3_5_moe(tokenizer: Any, folder: Path) -> Any:
    """The same with four experts, two of them per token, and a shared one."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    _qwen3_processors(tokenizer, folder)
    experts = {"num_experts": 4, "num_experts_per_tok": 2}
    experts |= {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}
    return Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(**_qwen3_5_parts(tokenizer, **experts)))


def _qwen3_5_parts(tokenizer: Any, **more: Any) -> dict[str, Any]:
    layers = ["linear_attention", "linear_attention", "full_attention"]
    rope = {"mrope_section": [4, 2, 2], "mrope_interleaved": True, "partial_rotary_factor": 0.25}
    more |= {"head_dim": 64, "layer_types": layers, "tie_word_embeddings": False, **DELTA_NETS}
    text = _text_config(tokenizer, rope, **more)
    return {
        "text_config": text,
        "vision_config": QWEN3_TOWER,
        "tie_word_embeddings": False,
        **_special_ids(tokenizer),
    }


qwen3_vl: Recipe = _qwen3_vl


def qwen3_vl_moe(tokenizer: Any, folder: Path) -> Any:
    """Four experts, two of them per token."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    _qwen3_processors(tokenizer, folder)
    rope = {"mrope_section": [12, 10, 10], "mrope_interleaved": True}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
    config = Qwen3VLMoeConfig(
        text_config=_text_config(tokenizer, rope, head_dim=64, norm_topk_prob=True, **experts),
        vision_config={**QWEN3_TOWER, "deepstack_visual_indexes": [0, 2]},
        tie_word_embeddings=False,
        **_special_ids(tokenizer),
    )
    return Qwen3VLMoeForConditionalGeneration(config)


def transposed_experts(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The expert tensors of a mixture as vLLM loads them: transformers saves them the other way round."""
    return name, tensor.transpose(1, 2).contiguous() if "experts." in name and tensor.dim() == 3 else tensor


def nested_tower(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The tensors of a SigLIP or CLIP tower under the name that vLLM knows, which older transformers wrote."""
    return name.replace("vision_tower.", "vision_tower.vision_model."), tensor


def convert(folder: Path, change: Change, copy: Path) -> None:
    """Copy a checkpoint with its tensors changed one by one."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    changed = dict(change(name, tensor) for name, tensor in weights.items())
    save_file(changed, copy / "model.safetensors", metadata={"format": "pt"})


def qwen2_vl(tokenizer: Any, folder: Path) -> Any:
    """Qwen2-VL: full attention in the tower, one temporal position per pair of frames."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    images, videos = qwen2_vl_processors()
    Qwen2VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=_TEMPLATE
    ).save_pretrained(folder)
    tower = {"depth": 3, "embed_dim": 128, "hidden_size": 256, "num_heads": 4, "mlp_ratio": 2, "patch_size": 14}
    config = Qwen2VLConfig(
        text_config=_text_config(tokenizer, {"mrope_section": [8, 12, 12]}, tie_word_embeddings=False),
        vision_config={**tower, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3},
        tie_word_embeddings=False,
        **_special_ids(tokenizer),
    )
    return Qwen2VLForConditionalGeneration(config)


def glm4v(tokenizer: Any, folder: Path) -> Any:
    """GLM-4.1V: half of each head is rotated, and each frame of a video ends with its time in seconds."""
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    return Glm4vForConditionalGeneration(Glm4vConfig(**_glm4v_parts(tokenizer, folder)))


def glm4v_moe(tokenizer: Any, folder: Path) -> Any:
    """GLM-4.5V: a dense layer, then layers of four experts and a shared one."""
    from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 64}
    # Checkpoints have it, transformers' configuration does not.
    experts |= {"use_qk_norm": False}
    return Glm4vMoeForConditionalGeneration(Glm4vMoeConfig(**_glm4v_parts(tokenizer, folder, **experts)))


def _glm4v_parts(tokenizer: Any, folder: Path, **more: Any) -> dict[str, Any]:
    """Write the processors; parts of the configuration."""
    from transformers import Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    edges = {"shortest_edge": 56 * 56 * 2, "longest_edge": 28 * 28 * 2 * 768}
    images, videos = Glm4vImageProcessor(size=edges, **_HALF), Glm4vVideoProcessor(size=edges, **_HALF)
    Glm4vProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=_TEMPLATE
    ).save_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids
    rope = {"mrope_section": [4, 6, 6], "partial_rotary_factor": 0.5}
    marks = {
        f"{modality}_{end}_token_id": ids(f"<|{word}_of_{modality}|>")
        for modality in ("image", "video")
        for end, word in (("start", "begin"), ("end", "end"))
    }
    return {
        "text_config": _text_config(tokenizer, rope, pad_token_id=ids("<|endoftext|>"), **more),
        "vision_config": {**_VISION, "depth": 3, "image_size": 224, "patch_size": 14},
        "image_token_id": ids("<|image|>"),
        "video_token_id": ids("<|video|>"),
        "tie_word_embeddings": False,
        **marks,
    }


def idefics3(tokenizer: Any, folder: Path) -> Any:
    """Idefics 3: text before each tile names its row and column, and the whole image comes last."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    edge = {"longest_edge": 112}
    Idefics3Processor(
        image_processor=Idefics3ImageProcessor(size={"longest_edge": 224}, max_image_size=edge, **_HALF),
        tokenizer=tokenizer,
        image_seq_len=16,
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    tower = {key: SIGLIP[key] for key in SIGLIP if key != "model_type"}
    config = Idefics3Config(
        vision_config={**tower, "patch_size": 14},
        text_config={"model_type": "llama", **_plain_text(tokenizer), "pad_token_id": 0},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return Idefics3ForConditionalGeneration(config)


INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def internvl(tokenizer: Any, folder: Path) -> Any:
    """InternVL: an image is cut into tiles of 16 visual tokens, a video has one such tile per frame."""
    from transformers import (
        AutoTokenizer,
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    settings = folder / "tokenizer_config.json"
    named = {**json.loads(settings.read_text()), **INTERNVL_TOKENS, "extra_special_tokens": INTERNVL_TOKENS}
    settings.write_text(json.dumps(named))
    size = {"height": 112, "width": 112}
    InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=6, **_HALF),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        video_processor=InternVLVideoProcessor(size=size, **_HALF),
        image_seq_length=16,
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    settings.write_text(json.dumps(named))
    tower = {key: SIGLIP[key] for key in SIGLIP if key not in ("model_type", "image_size", "patch_size")}
    config = InternVLConfig(
        vision_config={**tower, "image_size": [112, 112], "patch_size": [14, 14], "use_mean_pooling": True},
        text_config={"model_type": "qwen2", **_plain_text(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    return InternVLForConditionalGeneration(config)


def llava_onevision(tokenizer: Any, folder: Path) -> Any:
    """LLaVA-OneVision: the whole image and then its tiles, whose rows end with an embedded newline."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    size, pins = {"height": 112, "width": 112}, [[112, 112], [112, 224], [224, 112], [224, 224]]
    LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pins, **_HALF),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size, **_HALF),
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids
    config = LlavaOnevisionConfig(
        vision_config={**SIGLIP, "vision_use_head": False},
        text_config={"model_type": "qwen2", **_plain_text(tokenizer)},
        image_token_id=ids("<image>"),
        video_token_id=ids("<video>"),
        image_grid_pinpoints=pins,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=False,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.image_newline)
    return model


def _pixtral_processor(tokenizer: Any, folder: Path, merge: int = 2) -> None:
    from transformers import PixtralImageProcessor, PixtralProcessor

    PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 448}, patch_size=14, **_HALF),
        tokenizer=tokenizer,
        patch_size=14,
        spatial_merge_size=merge,
        image_token="[IMG]",
        image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]",
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)


ROPE = {"rope_type": "default", "rope_theta": 10000.0}
PIXTRAL_TOWER = {**SIGLIP, "model_type": "pixtral", "image_size": 448, "head_dim": 32, "rope_parameters": ROPE}


def mistral3(tokenizer: Any, folder: Path) -> Any:
    """Mistral 3: a text token ends each row of an image."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    _pixtral_processor(tokenizer, folder)
    config = Mistral3Config(
        vision_config=PIXTRAL_TOWER,
        text_config={"model_type": "mistral", "head_dim": 64, "sliding_window": None, **_plain_text(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return Mistral3ForConditionalGeneration(config)


def llava_next(tokenizer: Any, folder: Path) -> Any:
    """LLaVA-NeXT: as LLaVA-OneVision, with CLIP's tower and without videos."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    size, pins = {"height": 112, "width": 112}, [[112, 224], [224, 112], [224, 224]]
    LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 112}, crop_size=size, image_grid_pinpoints=pins, **_HALF
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    config = LlavaNextConfig(
        vision_config={**SIGLIP, "model_type": "clip_vision_model"},
        text_config={"model_type": "llama", **_plain_text(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pins,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaNextForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.image_newline)
    return model


def pixtral(tokenizer: Any, folder: Path) -> Any:
    """Pixtral as transformers saves it: LLaVA's architecture with Pixtral's tower and separators."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    _pixtral_processor(tokenizer, folder, merge=1)
    config = LlavaConfig(
        vision_config=PIXTRAL_TOWER,
        text_config={"model_type": "mistral", "head_dim": 64, "sliding_window": None, **_plain_text(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


def smolvlm(tokenizer: Any, folder: Path) -> Any:
    """SmolVLM: as Idefics 3."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessor, SmolVLMProcessor
    from transformers.models.smolvlm import processing_smolvlm
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    # Its processor writes the number of a video's frames in words, with a package that images do not need.
    processing_smolvlm.num2words = processing_smolvlm.num2words or str
    edge = {"longest_edge": 112}
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size={"longest_edge": 224}, max_image_size=edge, **_HALF),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(),
        image_seq_len=16,
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    tower = {key: SIGLIP[key] for key in SIGLIP if key != "model_type"}
    config = SmolVLMConfig(
        vision_config={**tower, "patch_size": 14},
        text_config={"model_type": "llama", **_plain_text(tokenizer), "pad_token_id": 0},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return SmolVLMForConditionalGeneration(config)


def exaone4_5(tokenizer: Any, folder: Path) -> Any:
    """EXAONE 4.5: Qwen2.5-VL's processors and windows before a language model with one position per token."""
    from transformers import Exaone4_5_Config, Exaone4_5_ForConditionalGeneration, Exaone4_5_Processor

    images, videos = qwen2_vl_processors()
    Exaone4_5_Processor(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=_TEMPLATE
    ).save_pretrained(folder)
    tower = {"depth": 3, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1], "num_key_value_heads": 2}
    layers = {"sliding_window": None, "layer_types": ["full_attention"] * 3, "head_dim": 64}
    ids = _special_ids(tokenizer)
    config = Exaone4_5_Config(
        text_config={"model_type": "exaone4", **_plain_text(tokenizer, **layers)},
        vision_config={**_VISION, **tower},
        image_token_id=ids["image_token_id"],
        video_token_id=ids["video_token_id"],
        tie_word_embeddings=False,
    )
    return Exaone4_5_ForConditionalGeneration(config)


LLAMA4_TOKENS = (
    "<|image|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|patch|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
)


def llama4(tokenizer: Any, folder: Path) -> Any:
    """Llama 4: one expert of four per token and a shared one; the last layer attends without positions."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration, Llama4ImageProcessor, Llama4Processor

    size = {"height": 112, "width": 112}
    Llama4Processor(
        image_processor=Llama4ImageProcessor(size=size, max_patches=4),
        tokenizer=tokenizer,
        patch_size=14,
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids
    experts = {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 512, "head_dim": 64}
    tower = {key: SIGLIP[key] for key in SIGLIP if key != "model_type"}
    tower |= {"projector_input_dim": 128, "projector_output_dim": 128, "vision_output_dim": 128}
    config = Llama4Config(
        text_config=_plain_text(tokenizer, **experts, no_rope_layers=[1, 1, 0], pad_token_id=0),
        vision_config={**tower, "intermediate_size": 512},
        boi_token_index=ids("<|image_start|>"),
        eoi_token_index=ids("<|image_end|>"),
        image_token_index=ids("<|patch|>"),
        tie_word_embeddings=False,
    )
    return Llama4ForConditionalGeneration(config)


GEMMA_TOKENS = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
NEWLINES = ("\n", "\n\n", "\n\n\n", "\n\n\n\n")
"""Tokens of their own in Gemma's vocabulary, which its processor in vLLM looks up."""


def _named_tokens(folder: Path, tokens: dict[str, str]) -> Any:
    """Give a tokenizer's special tokens names that a processor asks for; writes them anew, as saving drops them."""
    from transformers import AutoTokenizer

    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **tokens, "extra_special_tokens": tokens}))
    return AutoTokenizer.from_pretrained(folder)


def _gemma_text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """A window of 64 cached tokens in all layers but one."""
    text = _plain_text(tokenizer, head_dim=64, sliding_window=64, pad_token_id=0, **more)
    del text["rope_parameters"]
    return {**text, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}


def gemma3(tokenizer: Any, folder: Path) -> Any:
    """Gemma 3: every picture is 64 visual tokens."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

    size = {"height": 224, "width": 224}
    Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size=size, **_HALF),
        tokenizer=_named_tokens(folder, GEMMA_TOKENS),
        image_seq_length=64,
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    _named_tokens(folder, GEMMA_TOKENS)
    config = Gemma3Config(
        text_config=_gemma_text(tokenizer, query_pre_attn_scalar=64),
        vision_config={**SIGLIP, "image_size": 224, "vision_use_head": False},
        mm_tokens_per_image=64,
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        tie_word_embeddings=False,
    )
    return Gemma3ForConditionalGeneration(config)


GEMMA4_TOKENS = {
    **{"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"},
    **{"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"},
}


def gemma4(tokenizer: Any, folder: Path) -> Any:
    """Gemma 4: as many visual tokens as a picture's shape gives below 70, and a time before each frame of a video."""
    from transformers import (
        Gemma4AudioFeatureExtractor,
        Gemma4Config,
        Gemma4ForConditionalGeneration,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4VideoProcessor,
    )

    Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(max_soft_tokens=70),
        tokenizer=_named_tokens(folder, GEMMA4_TOKENS),
        video_processor=Gemma4VideoProcessor(max_soft_tokens=70),
        image_seq_length=70,
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    _named_tokens(folder, GEMMA4_TOKENS)
    ids = tokenizer.convert_tokens_to_ids
    text = _gemma_text(tokenizer, global_head_dim=64, hidden_size_per_layer_input=0, num_kv_shared_layers=0)
    tower = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 32,
    }
    config = Gemma4Config(
        text_config=text,
        vision_config={**tower, "num_key_value_heads": 4, "patch_size": 16, "default_output_length": 70},
        audio_config=None,
        boi_token_id=ids("<|image>"),
        eoi_token_id=ids("<image|>"),
        image_token_id=ids("<|image|>"),
        video_token_id=ids("<|video|>"),
        tie_word_embeddings=False,
    )
    return Gemma4ForConditionalGeneration(config)


MINICPM_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}


def minicpmv4_6(tokenizer: Any, folder: Path) -> Any:
    """MiniCPM-V 4.6: a picture and then its slices, which have other sizes than it, before Qwen3.5."""
    from transformers import (
        MiniCPMV4_6Config,
        MiniCPMV4_6ForConditionalGeneration,
        MiniCPMV4_6ImageProcessor,
        MiniCPMV4_6Processor,
        MiniCPMV4_6VideoProcessor,
    )

    size = {"scale_resolution": 168, "patch_size": 14, "max_slice_nums": 4, **_HALF}
    MiniCPMV4_6Processor(
        image_processor=MiniCPMV4_6ImageProcessor(**size),
        video_processor=MiniCPMV4_6VideoProcessor(**size),
        tokenizer=_named_tokens(folder, MINICPM_TOKENS),
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    _named_tokens(folder, MINICPM_TOKENS)
    ids = _special_ids(tokenizer)
    text = _qwen3_5_parts(tokenizer)["text_config"]
    config = MiniCPMV4_6Config(
        text_config={"model_type": "qwen3_5_text", **text},
        vision_config={**{key: SIGLIP[key] for key in SIGLIP if key != "model_type"}, "image_size": 224},
        insert_layer_id=0,
        image_size=168,
        image_token_id=ids["image_token_id"],
        video_token_id=ids["video_token_id"],
        tie_word_embeddings=False,
    )
    return MiniCPMV4_6ForConditionalGeneration(config)
