"""What KV eviction touches of vLLM's scheduler, block manager and model runners."""

from __future__ import annotations

from .entry import VllmSignature

_SCHEDULER = "vllm.v1.core.sched.scheduler"
_COORDINATOR = "vllm.v1.core.kv_cache_coordinator"
_MANAGER = "vllm.v1.core.single_type_kv_cache_manager"
_RUNNER = "vllm.v1.worker.gpu_model_runner"
_RUNNER_V2 = "vllm.v1.worker.gpu.model_runner"
_GRAPHS_V2 = "vllm.v1.worker.gpu.cudagraph_utils"
_GROUP = "vllm.v1.worker.utils"
_STATE = "vllm.v1.worker.gpu.model_states.interface"
_BATCH = ("seq_lens", "seq_lens_cpu_upper_bound", "positions", "num_scheduled_tokens", "num_computed_tokens_np")
_COMMON = ("seq_lens", "seq_lens_cpu_upper_bound", "max_seq_len", "_num_computed_tokens_cache")
_LENGTHS = ("request_id", "num_tokens", "num_tokens_main_model")
SCHEDULER_SIGNATURES: tuple[VllmSignature, ...] = (
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
    VllmSignature("vllm.v1.core.kv_cache_manager", "KVCacheManager.create_kv_cache_blocks", ("blocks",)),
    VllmSignature(_COORDINATOR, "KVCacheCoordinator.find_longest_cache_hit", ("block_hashes", "max_cache_hit_length")),
    VllmSignature(_COORDINATOR, "KVCacheCoordinator.cache_blocks", ("request", "num_computed_tokens")),
    VllmSignature(
        _MANAGER,
        "FullAttentionManager.get_num_blocks_to_allocate",
        (*_LENGTHS, "new_computed_blocks", "total_computed_tokens", "num_local_computed_tokens"),
    ),
    VllmSignature(_MANAGER, "FullAttentionManager.allocate_new_blocks", _LENGTHS),
    VllmSignature(_MANAGER, "MambaManager", ("kv_cache_spec", "block_pool")),
    VllmSignature(_MANAGER, "SlidingWindowManager", ("kv_cache_spec",)),
    VllmSignature(_MANAGER, "FullAttentionManager.pop_blocks_for_free", ("request_id",)),
    VllmSignature("vllm.v1.core.block_pool", "BlockPool.get_new_blocks", ("num_blocks",)),
    VllmSignature("vllm.v1.core.block_pool", "BlockPool.free_blocks", ("ordered_blocks",)),
    VllmSignature(
        "vllm.utils.torch_utils", "direct_register_custom_op", ("op_name", "op_func", "mutates_args", "fake_impl")
    ),
    VllmSignature("vllm.utils.torch_utils", "async_tensor_h2d", ("data", "device", "dtype", "out")),
)

_GROUP_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature(_GROUP, "AttentionGroup", ("layer_names", "kv_cache_spec", "kernel_block_stride")),
    VllmSignature(_GROUP, "AttentionGroup.build_metadata", ("common_attn_metadata",)),
    VllmSignature(_GROUP, "AttentionGroup.build_metadata_for_cudagraph_capture", ("common_attn_metadata",)),
    VllmSignature("vllm.v1.attention.backend", "CommonAttentionMetadata", _COMMON),
    VllmSignature("vllm.v1.kv_cache_interface", "FullAttentionSpec", ("block_size", "num_kv_heads", "head_size")),
    VllmSignature("vllm.v1.kv_cache_interface", "FullAttentionSpec.merge", ("specs",)),
    VllmSignature("vllm.v1.kv_cache_interface", "KVCacheSpec.is_uniform_with_collection", ("kv_cache_specs",)),
    VllmSignature("vllm.v1.kv_cache_interface", "replace_as", ("spec", "target_cls", "drop")),
    VllmSignature("vllm.v1.kv_cache_interface", "MambaSpec", ("mamba_cache_mode",)),
    VllmSignature("vllm.v1.kv_cache_interface", "SlidingWindowSpec", ("sliding_window",)),
)

RUNNER_V1_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature(_RUNNER, "GPUModelRunner._update_states", ("scheduler_output",)),
    VllmSignature(_RUNNER, "GPUModelRunner._execute_mm_encoder", ("scheduler_output",)),
    VllmSignature(_RUNNER, "GPUModelRunner._prepare_inputs", ("scheduler_output", "num_scheduled_tokens")),
    VllmSignature(_RUNNER, "GPUModelRunner.initialize_kv_cache", ("kv_cache_config", "is_profiling")),
    VllmSignature(_RUNNER, "GPUModelRunner.get_kv_cache_spec", ()),
    VllmSignature(_RUNNER, "GPUModelRunner.load_model", ()),
    VllmSignature(_RUNNER, "GPUModelRunner.profile_run", ()),
    VllmSignature(_RUNNER, "GPUModelRunner.execute_model", ("scheduler_output",)),
    VllmSignature(_RUNNER, "GPUModelRunner._model_forward", ()),
    VllmSignature(_RUNNER, "GPUModelRunner._warmup_and_capture", ("desc", "cudagraph_runtime_mode")),
    VllmSignature(_RUNNER, "GPUModelRunner.profile_cudagraph_memory", ()),
    VllmSignature("vllm.compilation.cuda_graph", "CUDAGraphWrapper", ("runnable", "vllm_config", "runtime_mode")),
    VllmSignature("vllm.compilation.cuda_graph", "CUDAGraphWrapper.__call__", ()),
    VllmSignature("vllm.v1.cudagraph_dispatcher", "CudagraphDispatcher.add_cudagraph_key", ("batch_descriptor",)),
    VllmSignature("vllm.v1.worker.block_table", "MultiGroupBlockTable.__getitem__", ("idx",)),
    VllmSignature("vllm.v1.worker.block_table", "BlockTable.compute_slot_mapping", ("num_reqs", "positions")),
    VllmSignature("vllm.v1.worker.block_table", "BlockTable.add_row", ("block_ids", "row_idx")),
    VllmSignature("vllm.v1.worker.block_table", "BlockTable.clear_row", ("row_idx",)),
    *_GROUP_SIGNATURES,
)

RUNNER_V2_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature(_RUNNER_V2, "GPUModelRunner.get_kv_cache_spec", ()),
    VllmSignature(_RUNNER_V2, "GPUModelRunner.load_model", ()),
    VllmSignature(_RUNNER_V2, "GPUModelRunner.profile_run", ()),
    VllmSignature(_RUNNER_V2, "GPUModelRunner.initialize_kv_cache", ("kv_cache_config", "is_profiling")),
    VllmSignature(_RUNNER_V2, "GPUModelRunner.finish_requests", ("scheduler_output",)),
    VllmSignature(_RUNNER_V2, "GPUModelRunner.add_requests", ("scheduler_output",)),
    VllmSignature(_RUNNER_V2, "GPUModelRunner.update_requests", ("scheduler_output",)),
    VllmSignature(_RUNNER_V2, "GPUModelRunner.prepare_inputs", ("scheduler_output", "batch_req_state", "batch_desc")),
    VllmSignature(_RUNNER_V2, "GPUModelRunner.prepare_attn", ("input_batch",)),
    VllmSignature(_RUNNER_V2, "GPUModelRunner.execute_model", ("scheduler_output", "dummy_run")),
    VllmSignature(_GRAPHS_V2, "CudaGraphManager.capture", ("create_forward_fn",)),
    VllmSignature(_GRAPHS_V2, "CudaGraphManager.release_graphs", ()),
    VllmSignature(_GRAPHS_V2, "CudaGraphManager.run_fullgraph", ("desc",)),
    VllmSignature(_GRAPHS_V2, "ModelCudaGraphManager.capture", ("model", "model_state")),
    VllmSignature(_GRAPHS_V2, "ModelCudaGraphManager.run_fullgraph", ("desc",)),
    VllmSignature(_GRAPHS_V2, "profile_cudagraph_memory", ("runner",)),
    VllmSignature(_STATE, "ModelState.prepare_attn", ("input_batch", "cudagraph_mode", "for_capture")),
    VllmSignature(_STATE, "ModelState.execute_mm_encoder", ("scheduled_encoder_inputs",)),
    VllmSignature("vllm.v1.worker.gpu.block_table", "BlockTables", ("block_sizes", "max_num_reqs")),
    VllmSignature("vllm.v1.worker.gpu.buffer_utils", "StagedWriteTensor.stage_write", ("index", "start", "x")),
    VllmSignature("vllm.v1.worker.gpu.input_batch", "InputBatch", ("req_ids", "has_prefill", *_BATCH)),
    VllmSignature(
        "vllm.v1.core.sched.output", "NewRequestData", ("req_id", "prompt_token_ids", "mm_features", "sampling_params")
    ),
    *_GROUP_SIGNATURES,
)

KV_SIGNATURES = tuple(dict.fromkeys((*SCHEDULER_SIGNATURES, *RUNNER_V1_SIGNATURES, *RUNNER_V2_SIGNATURES)))


def signatures_of_runner(v2: bool) -> tuple[VllmSignature, ...]:
    """What an engine on one of the model runners needs; checking it imports nothing of the other one."""
    return (*SCHEDULER_SIGNATURES, *(RUNNER_V2_SIGNATURES if v2 else RUNNER_V1_SIGNATURES))
