"""The signature table: names of vLLM that we override, wrap or call, with the parameters that we rely on."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_RENDERER = "vllm.renderers.online_renderer"


@dataclass(frozen=True)
class VllmSignature:
    """One name of vLLM that we rely on, with the parameters that we pass or override."""

    module: str
    name: str
    parameters: tuple[str, ...]

    def problem(self) -> str | None:
        """What is wrong with it on this vLLM, None when it is as expected."""
        try:
            target: Any = importlib.import_module(self.module)
            for part in self.name.split("."):
                target = getattr(target, part)
        except (ImportError, AttributeError) as error:
            return f"{self.module}.{self.name}: {error}"
        missing = set(self.parameters) - set(inspect.signature(target).parameters)
        return f"{self.module}.{self.name} has no parameter {sorted(missing)}" if missing else None


_SCHEDULER = "vllm.v1.core.sched.scheduler"
_MANAGER = "vllm.v1.core.single_type_kv_cache_manager"
_RUNNER = "vllm.v1.worker.gpu_model_runner"
_LENGTHS = ("request_id", "num_tokens", "num_tokens_main_model")
KV_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature(_SCHEDULER, "Scheduler.schedule", ()),
    VllmSignature(_SCHEDULER, "Scheduler.add_request", ("request",)),
    VllmSignature(_SCHEDULER, "Scheduler._preempt_request", ("request",)),
    VllmSignature(_SCHEDULER, "Scheduler._free_request", ("request",)),
    VllmSignature(_SCHEDULER, "Scheduler._handle_blocked_waiting_request", ("request",)),
    VllmSignature(_SCHEDULER, "Scheduler.update_from_output", ("scheduler_output", "model_runner_output")),
    VllmSignature(_SCHEDULER, "Scheduler._get_local_prefix_cache_hit", ("request",)),
    VllmSignature("vllm.v1.core.sched.async_scheduler", "AsyncScheduler", ()),
    VllmSignature(
        "vllm.v1.core.sched.output",
        "SchedulerOutput",
        ("finished_req_ids", "scheduled_cached_reqs", "scheduled_encoder_inputs"),
    ),
    VllmSignature(
        "vllm.v1.core.kv_cache_manager", "KVCacheManager.truncate_computed_blocks", ("blocks", "num_computed_tokens")
    ),
    VllmSignature(
        _MANAGER,
        "FullAttentionManager.get_num_blocks_to_allocate",
        (*_LENGTHS, "new_computed_blocks", "total_computed_tokens", "num_local_computed_tokens"),
    ),
    VllmSignature(_MANAGER, "FullAttentionManager.allocate_new_blocks", _LENGTHS),
    VllmSignature(_MANAGER, "FullAttentionManager.cache_blocks", ("request", "num_tokens")),
    VllmSignature(_MANAGER, "FullAttentionManager.pop_blocks_for_free", ("request_id",)),
    VllmSignature("vllm.v1.core.block_pool", "BlockPool.get_new_blocks", ("num_blocks",)),
    VllmSignature("vllm.v1.core.block_pool", "BlockPool.free_blocks", ("ordered_blocks",)),
    VllmSignature(_RUNNER, "GPUModelRunner._update_states", ("scheduler_output",)),
    VllmSignature(_RUNNER, "GPUModelRunner._execute_mm_encoder", ("scheduler_output",)),
    VllmSignature(_RUNNER, "GPUModelRunner._prepare_inputs", ("scheduler_output", "num_scheduled_tokens")),
    VllmSignature(_RUNNER, "GPUModelRunner.initialize_kv_cache", ("kv_cache_config", "is_profiling")),
    VllmSignature(_RUNNER, "GPUModelRunner.load_model", ()),
    VllmSignature(_RUNNER, "GPUModelRunner.profile_run", ()),
    VllmSignature(_RUNNER, "GPUModelRunner.execute_model", ("scheduler_output",)),
    VllmSignature("vllm.v1.worker.block_table", "MultiGroupBlockTable.compute_slot_mapping", ("num_reqs", "positions")),
    VllmSignature("vllm.v1.worker.block_table", "MultiGroupBlockTable.add_row", ("block_ids", "row_idx")),
    VllmSignature("vllm.v1.worker.block_table", "MultiGroupBlockTable.clear_row", ("row_idx",)),
    VllmSignature("vllm.utils.torch_utils", "async_tensor_h2d", ("data", "device", "dtype", "out")),
    VllmSignature(
        "vllm.utils.torch_utils", "direct_register_custom_op", ("op_name", "op_func", "mutates_args", "fake_impl")
    ),
)

_MEDIA = "vllm.multimodal.media"
MEDIA_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature("vllm.utils.registry", "ExtensionManager.register", ("name",)),
    VllmSignature("vllm.utils.registry", "ExtensionManager.load", ("cls_name",)),
    VllmSignature(_MEDIA, "MediaConnector.load_from_url", ("url", "media_io", "fetch_timeout")),
    VllmSignature(_MEDIA, "MediaConnector.load_from_url_async", ("url", "media_io", "fetch_timeout")),
    VllmSignature(_MEDIA, "MediaConnector._get_cached_bytes", ("url",)),
    VllmSignature(_MEDIA, "MediaConnector._put_cached_bytes", ("url", "data")),
    VllmSignature(_MEDIA, "MediaWithBytes", ("media", "original_bytes", "io_config")),
    VllmSignature(_MEDIA, "ImageMediaIO.load_bytes", ("data",)),
    VllmSignature(_MEDIA, "ImageMediaIO._convert_image_mode", ("image",)),
    VllmSignature(_MEDIA, "VideoMediaIO.load_base64", ("media_type", "data")),
    VllmSignature("vllm.multimodal.image", "open_image", ("fp",)),
    VllmSignature("vllm.multimodal.video", "VideoBackend.compute_frames_index_to_sample", ("source", "target")),
    VllmSignature("vllm.multimodal.video_decoders.opencv", "OpenCVVideoBackendMixin.open_video_capture", ("data",)),
)

_CHAT = "vllm.renderers.chat_utils"
_PROCESSING = "vllm.multimodal.processing"
CONTENT_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature(_CHAT, "BaseMultiModalContentParser.parse_image", ("image_url", "uuid")),
    VllmSignature(_CHAT, "BaseMultiModalContentParser.parse_video", ("video_url", "uuid")),
    VllmSignature(_CHAT, "BaseMultiModalContentParser.parse_audio", ("audio_url", "uuid")),
    VllmSignature(_CHAT, "BaseMultiModalContentParser.parse_input_audio", ("input_audio", "uuid")),
    VllmSignature(_CHAT, "BaseMultiModalContentParser.parse_prompt_embeds", ("data",)),
    VllmSignature(_CHAT, "MultiModalContentParser", ("tracker",)),
    VllmSignature(_CHAT, "AsyncMultiModalContentParser", ("tracker",)),
    VllmSignature(_CHAT, "_parse_chat_message_content_part", ("part", "mm_parser")),
    VllmSignature(_CHAT, "MultiModalItemTracker.add", ("modality", "item")),
    VllmSignature(_CHAT, "MultiModalItemTracker.resolve_items", ()),
    VllmSignature(_CHAT, "AsyncMultiModalItemTracker.resolve_items", ()),
    VllmSignature(_PROCESSING, "BaseProcessingInfo.validate_num_items", ("modality", "num_items")),
    VllmSignature(_PROCESSING, "InputProcessingContext.call_hf_processor", ("hf_processor", "data", "kwargs")),
)

_ENGINE = "vllm.v1.engine"
_BASE_RENDERER = "vllm.renderers.base"
_TOKEN_ROUTE = "vllm.entrypoints.scale_out.token_in_token_out"
SERVING_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature(f"{_ENGINE}.input_processor", "InputProcessor.process_inputs", ("request_id", "prompt", "params")),
    VllmSignature(f"{_ENGINE}.input_processor", "InputProcessor.__init__", ("vllm_config", "renderer")),
    VllmSignature(_RENDERER, "OnlineRenderer.__init__", ("renderer",)),
    VllmSignature(_BASE_RENDERER, "BaseRenderer._process_tokens", ("prompt",)),
    VllmSignature(_BASE_RENDERER, "BaseRenderer._process_tokens_async", ("prompt",)),
    VllmSignature(_BASE_RENDERER, "BaseRenderer._process_mm_uuids", ("mm_data", "mm_data_items", "mm_uuid_items")),
    VllmSignature("vllm.multimodal.hasher", "MultiModalHasher.hash_kwargs", ("algorithm", "kwargs")),
    VllmSignature("vllm.multimodal.parse", "ModalityDataItems.get_all_items_for_hash", ()),
    VllmSignature("vllm.multimodal.parse", "ModalityDataItems.get_passthrough_data", ()),
    VllmSignature("vllm.multimodal.cache.base", "BaseMultiModalProcessorCache.is_cached", ("mm_hashes",)),
    VllmSignature(f"{_TOKEN_ROUTE}.serving", "ServingTokens.serve_tokens", ("request",)),
    VllmSignature(f"{_TOKEN_ROUTE}.mm_features", "mm_kwargs_from_features", ("features",)),
    VllmSignature(f"{_TOKEN_ROUTE}.protocol", "MultiModalFeatures", ("mm_hashes", "mm_placeholders", "kwargs_data")),
    VllmSignature(f"{_ENGINE}.async_llm", "AsyncLLM.shutdown", ("timeout",)),
    VllmSignature(f"{_ENGINE}.async_llm", "AsyncLLM.pause_generation", ("mode", "clear_cache")),
    VllmSignature(
        "vllm.multimodal.processing", "BaseProcessingInfo.get_mm_max_tokens_per_item", ("seq_len", "mm_counts")
    ),
    VllmSignature(
        "vllm.model_executor.models.qwen2_vl",
        "Qwen2VLProcessingInfo.get_num_image_tokens",
        ("image_width", "image_height", "image_processor", "mm_kwargs"),
    ),
    VllmSignature("uvicorn", "Config", ("timeout_graceful_shutdown",)),
    VllmSignature("uvicorn.protocols.http.httptools_impl", "RequestResponseCycle.send", ("message",)),
    VllmSignature("vllm.entrypoints.serve.exception_handling.register", "validation_exception_handler", ("req", "exc")),
)

_CHAT = "vllm.entrypoints.openai.chat_completion.serving"
PREVIEW_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature(f"{_ENGINE}.core_client", "AsyncMPClient.call_utility_all_async", ("method", "args")),
    VllmSignature(f"{_ENGINE}.async_llm", "AsyncLLM.collective_rpc", ("method", "args")),
    VllmSignature(_RENDERER, "OnlineRenderer.render_chat", ("request", "skip_mm_cache")),
    VllmSignature(_CHAT, "OpenAIServingChat._check_model", ("request",)),
    VllmSignature(_CHAT, "OpenAIServingChat._preflight", ("n",)),
    VllmSignature(_CHAT, "OpenAIServingChat._maybe_get_adapters", ("request", "supports_default_mm_loras")),
    VllmSignature(_CHAT, "OpenAIServingChat._get_trace_headers", ("headers",)),
    VllmSignature(_CHAT, "OpenAIServingChat._get_priority", ("request", "raw_request")),
    VllmSignature(_CHAT, "OpenAIServingChat._get_data_parallel_rank", ("raw_request",)),
)

_FILES = "prometheus_client.mmap_dict"
METRICS_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature("prometheus_client.values", "MmapedDict", ("filename", "read_mode")),
    VllmSignature(_FILES, "MmapedDict._init_value", ("key",)),
)

_BLOCK = ("cu_seqlens", "rotary_pos_emb_cos", "rotary_pos_emb_sin", "max_seqlen", "sequence_lengths")
_PROCESSOR = "vllm.multimodal.processing.processor"
_MOLMO2 = "vllm.model_executor.models.molmo2"
SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature(_RENDERER, "OnlineRenderer.preprocess_chat", ("request", "messages")),
    VllmSignature(_RENDERER, "OnlineRenderer.preprocess_cmpl", ("request", "prompts")),
    VllmSignature("vllm.renderers.base", "BaseRenderer.render_chat_async", ("chat_params", "prompt_extras")),
    VllmSignature("vllm.renderers.base", "BaseRenderer.render_cmpl_async", ("prompts", "prompt_extras")),
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
    VllmSignature("vllm.v1.engine.output_processor", "OutputProcessor.process_outputs", ("engine_core_outputs",)),
    VllmSignature("vllm.v1.engine", "EngineCoreOutput", ("request_id", "kv_transfer_params")),
    *KV_SIGNATURES,
    *MEDIA_SIGNATURES,
    *CONTENT_SIGNATURES,
    *SERVING_SIGNATURES,
    *PREVIEW_SIGNATURES,
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
)

_BENCH = "vllm.benchmarks"
BENCH_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature(
        f"{_BENCH}.serve", "benchmark", ("endpoint_type", "input_requests", "request_rate", "ready_check_timeout_sec")
    ),
    VllmSignature(f"{_BENCH}.datasets", "SampleRequest", ("request_id", "chat_messages", "request_overrides")),
    VllmSignature(
        f"{_BENCH}.lib.endpoint_request_func",
        "async_request_openai_chat_completions",
        ("request_func_input", "session", "pbar"),
    ),
)
"""What `vllm-prune bench` builds on; a server does without."""


def signature_problems(signatures: Sequence[VllmSignature] = SIGNATURES) -> list[str]:
    """Names of vLLM that are not as this version expects; empty on a supported vLLM."""
    return [problem for signature in signatures if (problem := signature.problem())]
