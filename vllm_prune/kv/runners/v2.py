"""vLLM's Model Runner V2, for requests whose cache may be shorter than their text.

Its speculation makes the counts on the host optimistic, so KV budgets are refused beside any (`support.kv`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...config.worker_facts import WorkerFacts
from ..lengths import CacheLengths, cached_positions
from .base import CompactingRunner
from .plain_graphs import capture_plain_graphs


class CompactingV2(CompactingRunner):
    """In front of vLLM's V2 runner, whose batch is made anew in each step and stays logical.

    Attributes:
        kv_lengths: what of the step is physical.
        kv_traces: trace headers of the step's requests, by id.
    """

    kv_lengths: CacheLengths
    kv_traces: Mapping[str, Any]
    # vLLM's runner.
    req_states: Any
    block_tables: Any
    model_state: Any
    cudagraph_manager: Any

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """As the base; vLLM makes the model's state here, which builds attention's metadata."""
        super().load_model(*args, **kwargs)
        self.kv_lengths, self.kv_traces = CacheLengths(self.device), {}
        state, prepare, encode = self.model_state, self.model_state.prepare_attn, self.model_state.execute_mm_encoder

        # On the instance: its class has another memory layout than one of ours would have, so it cannot be changed.
        def prepare_attn(input_batch: Any, *args: Any, **kwargs: Any) -> Any:
            return prepare(self.kv_lengths.attended(input_batch), *args, **kwargs)

        def execute_mm_encoder(scheduled_encoder_inputs: Any) -> Any:
            with self._encoding(self.kv_traces, scheduled_encoder_inputs):
                return encode(scheduled_encoder_inputs)

        state.prepare_attn, state.execute_mm_encoder = prepare_attn, execute_mm_encoder

    def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        """As the base; vLLM makes the manager of CUDA graphs here, also the one whose memory it profiles."""
        super().initialize_kv_cache(*args, **kwargs)
        self.capture_plain_graphs()

    def capture_plain_graphs(self) -> None:
        """Let the manager of CUDA graphs capture those of plain steps, too, unless the operator does not want them."""
        if WorkerFacts.of(self.vllm_config).plain_graphs:
            capture_plain_graphs(self.cudagraph_manager, self._observes, self._capturing_plain)

    def finish_requests(self, scheduler_output: Any) -> None:
        """A preempted request comes back as a new one."""
        for request_id in {*scheduler_output.finished_req_ids, *(scheduler_output.preempted_req_ids or ())}:
            self._untrack(request_id)
        super().finish_requests(scheduler_output)  # type: ignore[misc]

    def add_requests(self, scheduler_output: Any) -> None:
        """As vLLM's; budgets come with new requests."""
        super().add_requests(scheduler_output)  # type: ignore[misc]
        for new in scheduler_output.scheduled_new_reqs:
            self._track(new.req_id, new)

    def update_requests(self, scheduler_output: Any) -> None:
        """Compact before blocks are zeroed, copied or appended: freed ones may be another request's in this step."""
        self._compact(scheduler_output)
        super().update_requests(scheduler_output)  # type: ignore[misc]

    def _replace_blocks(self, request_id: str, blocks: list[int], group: int) -> None:
        index = self.req_states.req_id_to_index[request_id]
        self.block_tables.block_tables[group].stage_write(index, 0, blocks)
        self.block_tables.num_blocks.np[group, index] = len(blocks)

    def prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Make cache lengths physical, and plan which queries the step observes. Not called for dummy batches."""
        batch = super().prepare_inputs(*args, **kwargs)  # type: ignore[misc]
        self._record_slots(batch.has_prefill)
        if not self.kv_requests:
            return batch
        self._plan_observation(
            batch.req_ids, batch.num_computed_tokens_np.tolist(), batch.num_scheduled_tokens.tolist()
        )
        evicted = self._evicted(batch.req_ids)
        if not self.kv_group_lengths:
            return self.kv_lengths.begin(batch, evicted[0])
        for lengths, rows in zip(self.kv_group_lengths, evicted, strict=True):
            lengths.begin(rows)
        return batch

    def prepare_attn(self, input_batch: Any) -> Any:
        """Slots follow cached rows, in the groups that are compacted."""
        compacted: dict[int, Any] = {}
        for lengths, members in zip(self.kv_group_lengths, self.kv_groups.members, strict=False):
            if lengths.evicted is not None:
                physical = replace(input_batch, positions=cached_positions(input_batch, lengths.evicted, self.device))
                slots = super().prepare_attn(physical)[1]  # type: ignore[misc]
                compacted |= {member: slots[member].clone() for member in members}
        if not compacted:
            return super().prepare_attn(self.kv_lengths.slots_from(input_batch))  # type: ignore[misc]
        tables, slots = super().prepare_attn(input_batch)  # type: ignore[misc]
        # In place, as graphs have captured where slots lie.
        for member, mapping in compacted.items():
            slots[member].copy_(mapping)
        return tables, slots

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """One step; nothing of it is left for dummy batches and captured graphs."""
        self.kv_traces = getattr(scheduler_output, "traces", {})
        try:
            return super().execute_model(scheduler_output, *args, **kwargs)
        finally:
            self.kv_lengths.end()
