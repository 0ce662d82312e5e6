"""vLLM's Model Runner V1, for requests whose cache may be shorter than their text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from ...config.worker_facts import WorkerFacts
from .base import CompactingRunner
from .plain_graphs import decode_sizes


class CompactingV1(CompactingRunner):
    """In front of vLLM's V1 runner: its persistent batch becomes physical where full attention reads it."""

    # vLLM's runner.
    requests: dict[str, Any]
    input_batch: Any
    seq_lens: torch.Tensor
    optimistic_seq_lens_cpu: torch.Tensor
    query_start_loc: Any
    positions: torch.Tensor
    cudagraph_dispatcher: Any
    uniform_decode_query_len: int

    kv_plain_model: Any = None

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """As the base; vLLM wraps the model for full CUDA graphs here."""
        super().load_model(*args, **kwargs)
        self.capture_plain_graphs()

    def capture_plain_graphs(self) -> None:
        """Hold graphs of plain steps, too, unless the operator does not want them; vLLM clears both alike."""
        from vllm.compilation.cuda_graph import CUDAGraphWrapper

        model, self.kv_plain_model = self.model, None
        if isinstance(model, CUDAGraphWrapper) and WorkerFacts.of(self.vllm_config).plain_graphs:
            self.kv_plain_model = CUDAGraphWrapper(model.runnable, self.vllm_config, model.runtime_mode)

    @contextmanager
    def _plain_model(self) -> Iterator[None]:
        model, self.model = self.model, self.kv_plain_model
        try:
            yield
        finally:
            self.model = model

    def _warmup_and_capture(self, desc: Any, cudagraph_runtime_mode: Any, *args: Any, **kwargs: Any) -> None:
        """Capture a graph of a decode step twice; called for profiling, too, which so counts the memory of both."""
        super()._warmup_and_capture(desc, cudagraph_runtime_mode, *args, **kwargs)  # type: ignore[misc]
        if self.kv_plain_model is None or cudagraph_runtime_mode != self.kv_plain_model.runtime_mode:
            return
        sizes = [key.num_tokens for key in self.cudagraph_dispatcher.cudagraph_keys[cudagraph_runtime_mode]]
        if desc.num_tokens in decode_sizes(sizes, self.max_num_reqs * self.uniform_decode_query_len):
            with self._capturing_plain(), self._plain_model():
                super()._warmup_and_capture(desc, cudagraph_runtime_mode, *args, **kwargs)  # type: ignore[misc]

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        """Replay the plain graph where the step observes nothing."""
        from vllm.forward_context import get_forward_context

        plain = self.kv_plain_model
        if (
            plain is None
            or self._observes()
            or get_forward_context().batch_descriptor not in plain.concrete_cudagraph_entries
        ):
            return super()._model_forward(*args, **kwargs)  # type: ignore[misc]
        with self._plain_model():
            return super()._model_forward(*args, **kwargs)  # type: ignore[misc]

    def _update_states(self, scheduler_output: Any) -> Any:
        """Compact before anything else: the freed blocks may belong to another request of this very step."""
        for request_id in scheduler_output.finished_req_ids:
            self._untrack(request_id)
        self._compact(scheduler_output)
        for request_id in scheduler_output.scheduled_cached_reqs.resumed_req_ids:
            self._track(request_id, self.requests[request_id])
        result = super()._update_states(scheduler_output)  # type: ignore[misc]
        for new in scheduler_output.scheduled_new_reqs:
            self._track(new.req_id, self.requests[new.req_id])
        return result

    def _replace_blocks(self, request_id: str, blocks: list[int], group: int) -> None:
        held = self.requests[request_id].block_ids
        self.requests[request_id].block_ids = (*held[:group], blocks, *held[group + 1 :])
        row = self.input_batch.req_id_to_index.get(request_id)
        if row is not None:
            table = self.input_batch.block_table[group]
            table.clear_row(row)
            table.add_row(list(blocks), row)

    def _execute_mm_encoder(self, scheduler_output: Any) -> Any:
        """The step's pass of the vision tower, with spans where requests are traced."""
        with self._encoding(getattr(scheduler_output, "traces", {}), scheduler_output.scheduled_encoder_inputs):
            return super()._execute_mm_encoder(scheduler_output)  # type: ignore[misc]

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        """Make cache lengths and slots physical, and plan which queries the step observes."""
        result = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)  # type: ignore[misc]
        ids = self.input_batch.req_ids
        self._record_slots(self._prefills())
        if not self.kv_requests:
            return result
        self._shorten(self._evicted(ids), num_scheduled_tokens)
        computed = [self.requests[request_id].num_computed_tokens for request_id in ids]
        self._plan_observation(ids, computed, num_scheduled_tokens.tolist())
        return result

    def _prefills(self) -> bool:
        """Whether the step computes tokens of a prompt; no strategy reads the norms of decoded tokens."""
        states = (self.requests[request_id] for request_id in self.input_batch.req_ids)
        return any(state.num_computed_tokens < state.num_prompt_tokens for state in states)

    def _shorten(self, evicted: np.ndarray, scheduled: np.ndarray) -> None:
        """Make lengths and slots of the batch physical.

        Args:
            evicted: int32 [layer groups, R], evicted rows per request.
            scheduled: int32 [R], tokens per request that the step computes.
        """
        count, total = len(scheduled), int(scheduled.sum())
        for number, rows in enumerate(evicted):
            if not rows.any():
                continue
            if self.kv_group_lengths:
                self.kv_group_lengths[number].begin(rows)
            else:
                self.seq_lens[:count] -= async_tensor_h2d(rows, device=self.device)
                self.optimistic_seq_lens_cpu[:count] -= torch.from_numpy(rows)
            per_token = async_tensor_h2d(np.repeat(rows, scheduled).astype(np.int64), device=self.device)
            for member in self.kv_groups.members[number]:
                self.input_batch.block_table[member].compute_slot_mapping(
                    count,
                    self.query_start_loc.gpu[: count + 1],
                    self.positions[:total] - per_token,
                )
