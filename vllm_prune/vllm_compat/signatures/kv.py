"""What KV eviction touches of vLLM's scheduler, block manager and model runner V1."""

from __future__ import annotations

from .entry import VllmSignature

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
