"""What visual budgets touch of vLLM's models and of their processors."""

from __future__ import annotations

from .entry import VllmSignature

_BLOCK = ("cu_seqlens", "rotary_pos_emb_cos", "rotary_pos_emb_sin", "max_seqlen", "sequence_lengths")
_PROCESSOR = "vllm.multimodal.processing.processor"
_MTP = "vllm.model_executor.models.qwen3_5_mtp"
_ROTARY = "vllm.model_executor.layers.rotary_embedding"
_MOLMO2 = "vllm.model_executor.models.molmo2"
_ONEVISION = "vllm.model_executor.models.llava_onevision"
MODEL_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature(_PROCESSOR, "BaseMultiModalProcessor.apply", ("inputs", "timing_ctx")),
    VllmSignature(_PROCESSOR, "BaseMultiModalProcessor._get_mm_hashes", ("inputs",)),
    VllmSignature(_PROCESSOR, "BaseMultiModalProcessor._cached_apply_hf_processor", ("inputs", "timing_ctx")),
    VllmSignature(_PROCESSOR, "BaseMultiModalProcessor._apply_hf_processor_main", ("mm_items", "hf_kwargs")),
    VllmSignature(
        _PROCESSOR, "BaseMultiModalProcessor._get_cache_missing_processor_kwargs", ("inputs", "mm_is_cached")
    ),
    VllmSignature(_PROCESSOR, "BaseMultiModalProcessor._get_mm_fields_config", ("hf_inputs", "hf_processor_mm_kwargs")),
    VllmSignature(
        _PROCESSOR,
        "BaseMultiModalProcessor._get_prompt_updates",
        ("mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"),
    ),
    VllmSignature("vllm.multimodal.utils", "copy_mm_embedding_modality", ("src", "dst")),
    VllmSignature(
        "vllm.model_executor.models.qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration.get_mrope_input_positions",
        ("input_tokens", "mm_features"),
    ),
    VllmSignature(
        "vllm.model_executor.models.qwen3_vl",
        "Qwen3VLForConditionalGeneration.get_mrope_input_positions",
        ("input_tokens", "mm_features"),
    ),
    VllmSignature(
        "vllm.model_executor.models.qwen3_vl",
        "Qwen3VLMultiModalProcessor.get_video_repl",
        ("tokens_per_frame", "timestamps", "select_token_id"),
    ),
    VllmSignature(
        "vllm.model_executor.models.qwen3_vl", "Qwen3VLForConditionalGeneration.embed_input_ids", ("is_multimodal",)
    ),
    VllmSignature(
        "vllm.model_executor.models.qwen2_5_vl", "Qwen2_5_VisionTransformer.prepare_encoder_metadata", ("grid_thw",)
    ),
    VllmSignature("vllm.model_executor.models.qwen2_5_vl", "Qwen2_5_VisionBlock.forward", _BLOCK),
    VllmSignature("vllm.model_executor.models.qwen2_5_vl", "cast_overflow_tensors", ()),
    VllmSignature(
        "vllm.model_executor.models.qwen3_vl", "Qwen3_VisionTransformer.prepare_encoder_metadata", ("grid_thw_list",)
    ),
    VllmSignature("vllm.model_executor.models.qwen3_vl", "Qwen3_VisionBlock.forward", _BLOCK),
    VllmSignature("vllm.model_executor.layers.attention", "MMEncoderAttention", ("num_heads", "head_size", "scale")),
    VllmSignature("vllm.model_executor.models.qwen2_5_vl", "Qwen2_5_VisionAttention.forward", ("x", *_BLOCK)),
    VllmSignature(_MOLMO2, "ViTMultiHeadDotProductAttention.forward", ("inputs",)),
    VllmSignature(_MOLMO2, "Molmo2VisionBlock.forward", ("x",)),
    VllmSignature(_MOLMO2, "Molmo2VisionTransformer.add_pos_emb", ("x", "patch_num")),
    VllmSignature(_MOLMO2, "ImagePoolingAttention.forward", ("inputs_q", "inputs_kv")),
    VllmSignature(_MOLMO2, "Molmo2VisionBackbone.encode_image", ("images",)),
    VllmSignature(_MOLMO2, "Molmo2ForConditionalGeneration.embed_multimodal", ("kwargs",)),
    VllmSignature(_MOLMO2, "Molmo2ProcessingInfo.get_base_grid_size", ("image_processor",)),
    VllmSignature(_MOLMO2, "Molmo2ProcessingInfo.get_num_image_tokens", ("image_height", "image_width", "processor")),
    VllmSignature(_MOLMO2, "Molmo2ProcessingInfo._get_video_second_idx", ("metadata", "do_sample_frames")),
    VllmSignature(_MOLMO2, "build_flat_video_bool_length", ("video_grids", "hf_config")),
    VllmSignature(_ONEVISION, "LlavaOnevisionForConditionalGeneration.apply_pooling", ("image_features", "stride")),
    VllmSignature(_ONEVISION, "LlavaOnevisionForConditionalGeneration._process_video_pixels", ("inputs",)),
    VllmSignature(
        _ONEVISION, "LlavaOnevisionForConditionalGeneration._video_pixels_to_features", ("vision_tower", "pixel_values")
    ),
    VllmSignature(_ROTARY, "get_rope", ("head_size", "max_position", "rope_parameters")),
    VllmSignature(f"{_ROTARY}.common", "ApplyRotaryEmb"),
    VllmSignature(f"{_ROTARY}.base", "RotaryEmbeddingBase._match_cos_sin_cache_dtype", ("query",)),
    VllmSignature(f"{_ROTARY}.base", "RotaryEmbedding"),
    VllmSignature(f"{_ROTARY}.mrope", "MRotaryEmbedding"),
    VllmSignature("vllm.model_executor.models.mistral", "MistralAttention._get_llama_4_attn_scale", ("positions",)),
    VllmSignature("vllm.model_executor.models.llama4", "Llama4Attention._get_attn_scale", ("positions",)),
    VllmSignature("vllm.config", "ModelConfig.uses_mrope"),
    VllmSignature("vllm.config", "ModelConfig.mrope_num_dims"),
    VllmSignature("vllm.multimodal.processing", "PromptUpdateDetails", ("full", "is_embed")),
    VllmSignature("vllm.multimodal.processing", "PromptInsertion", ("insertion",)),
    VllmSignature("vllm.multimodal.processing", "PromptReplacement", ("replacement",)),
    VllmSignature("vllm.multimodal.processing", "BaseProcessingInfo.parse_mm_data", ("mm_data", "validate")),
    VllmSignature("vllm.multimodal.inputs", "MultiModalKwargsItems.from_hf_inputs", ("hf_inputs", "config_by_key")),
    VllmSignature("vllm.multimodal.inputs", "PlaceholderRange", ("offset", "length", "is_embed")),
    VllmSignature(_MTP, "Qwen3_5MTP.embed_input_ids", ("input_ids", "multimodal_embeddings", "is_multimodal")),
)
