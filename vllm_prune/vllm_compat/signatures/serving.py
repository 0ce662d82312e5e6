"""What requests pass in a server: renderers, input processor, routes, and the preview."""

from __future__ import annotations

from .entry import Home, VllmSignature

_RENDERER = "vllm.renderers.online_renderer"
_ENGINE = "vllm.v1.engine"
_BASE_RENDERER = "vllm.renderers.base"
_TOKEN_ROUTE = "vllm.entrypoints.scale_out.token_in_token_out"
SERVING_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature(_RENDERER, "OnlineRenderer.preprocess_chat", ("request", "messages")),
    VllmSignature(_RENDERER, "OnlineRenderer.preprocess_cmpl", ("request", "prompts")),
    VllmSignature(_BASE_RENDERER, "BaseRenderer.render_chat_async", ("chat_params", "prompt_extras")),
    VllmSignature(_BASE_RENDERER, "BaseRenderer.render_cmpl_async", ("prompts", "prompt_extras")),
    VllmSignature(f"{_ENGINE}.output_processor", "OutputProcessor.process_outputs", ("engine_core_outputs",)),
    VllmSignature(_ENGINE, "EngineCoreOutput", ("request_id", "kv_transfer_params")),
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

_CHAT_ROUTE = "vllm.entrypoints.openai.chat_completion.serving"
PREVIEW_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature(f"{_ENGINE}.core_client", "AsyncMPClient.call_utility_all_async", ("method", "args")),
    VllmSignature(f"{_ENGINE}.async_llm", "AsyncLLM.collective_rpc", ("method", "args")),
    VllmSignature(_RENDERER, "OnlineRenderer.render_chat", ("request", "skip_mm_cache")),
    VllmSignature(_CHAT_ROUTE, "OpenAIServingChat._check_model", ("request",)),
    VllmSignature(_CHAT_ROUTE, "OpenAIServingChat._preflight", ("n",)),
    VllmSignature(_CHAT_ROUTE, "OpenAIServingChat._maybe_get_adapters", ("request", "supports_default_mm_loras")),
    VllmSignature(_CHAT_ROUTE, "OpenAIServingChat._get_trace_headers", ("headers",)),
    VllmSignature(_CHAT_ROUTE, "OpenAIServingChat._get_priority", ("request", "raw_request")),
    VllmSignature(_CHAT_ROUTE, "OpenAIServingChat._get_data_parallel_rank", ("raw_request",)),
)

_API_UTILS = "vllm.entrypoints.serve.utils.api_utils"
LAUNCH_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature("vllm.entrypoints.cli.serve", "ServeSubcommand.subparser_init", ("subparsers",)),
    VllmSignature("vllm.entrypoints.cli.serve", "ServeSubcommand.validate", ("args",)),
    VllmSignature("vllm.entrypoints.cli.serve", "ServeSubcommand.cmd", ("args",)),
    VllmSignature("vllm.entrypoints.common.startup", "cli_env_setup", older=(Home(_API_UTILS, "cli_env_setup"),)),
    VllmSignature("vllm.logger", "configure_logging_from_args", ("args",)),
    VllmSignature("vllm.envs", "environment_variables"),
)
"""What `vllm-prune serve` calls to run vLLM's server in its process."""
