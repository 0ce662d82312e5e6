"""vLLM's V1 model runner, taught that a request's cache may be shorter than its text.

Everything that vLLM keeps stays logical: positions, stop conditions, sampling. Only what attention reads
becomes physical: block tables, sequence lengths and slots.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from ...budget.kv import KvSpec
from ...telemetry import engine_spans, metrics
from ..cache import UnknownLayout, open_rows
from ..commands import Compaction
from ..compaction import CachedRequest, Compactor, remember
from ..query_window import QueryStore, StepPlan
from ..saliency import SaliencyStore
from ..suitability import because, layer_refusals


class CompactingRunnerMixin:
    """In front of vLLM's runner class; `adopt` puts it there.

    Attributes:
        kv_requests: requests with a KV budget.
        kv_reasons: why this worker cannot compact; empty when it can.
    """

    kv_requests: dict[str, CachedRequest]
    kv_reasons: list[str]
    kv_compactor: Compactor | None
    kv_saliency: SaliencyStore | None
    kv_plan: StepPlan
    # vLLM's runner.
    vllm_config: Any
    compilation_config: Any
    cache_config: Any
    model: Any
    requests: dict[str, Any]
    input_batch: Any
    device: torch.device

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Hook the input norms before anything is compiled."""
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        names = [layer.layer_name for layer in self._decoder_layers()]
        store = SaliencyStore(self.model, names, self.device) if names else None
        self.kv_saliency = store if store is not None and store.hooked else None

    def _decoder_layers(self) -> list[Any]:
        from vllm.model_executor.layers.attention import Attention
        from vllm.v1.attention.backend import AttentionType

        found = self.compilation_config.static_forward_context.values()
        return [layer for layer in found if isinstance(layer, Attention) and layer.attn_type == AttentionType.DECODER]

    def initialize_kv_cache(self, kv_cache_config: Any, is_profiling: bool = False, **kwargs: Any) -> None:
        """Listen to attention once the caches are there, and learn their layout."""
        super().initialize_kv_cache(kv_cache_config, is_profiling, **kwargs)  # type: ignore[misc]
        if is_profiling:
            return
        layers = self._decoder_layers()
        self.kv_reasons = layer_refusals(layers)
        if len(kv_cache_config.kv_cache_groups) != 1:
            self.kv_reasons.append(because("cache_groups", f"{len(kv_cache_config.kv_cache_groups)}; one is supported"))
        if self.kv_reasons:
            return
        try:
            rows = open_rows(layers)
        except UnknownLayout as error:
            self.kv_reasons = [because("layout", str(error))]
            return
        size = self.cache_config.block_size
        if self.kv_saliency is not None:
            self.kv_saliency.allocate(kv_cache_config.num_blocks * size)
        self.kv_compactor = Compactor(
            layers, rows, QueryStore(layers), self.kv_saliency, self._rotation(layers[0]), size, _head_offset(layers[0])
        )
        self._observe_decode()

    def _rotation(self, layer: Any) -> torch.Tensor | None:
        """The rotary table beside an attention layer, where it turns halves of the whole head."""
        parent = layer.layer_name.rpartition(".")[0]
        module = dict(self.model.named_modules()).get(f"{parent}.rotary_emb")
        table = getattr(module, "cos_sin_cache", None)
        if table is None or not getattr(module, "is_neox_style", False) or table.shape[1] != layer.head_size:
            return None
        return table.float()

    def _observe_decode(self) -> None:
        """Keep full CUDA graphs, in which attention's Python does not run, off the steps that are observed."""
        dispatcher = self.cudagraph_dispatcher  # type: ignore[attr-defined]
        original = dispatcher.dispatch

        def dispatch(*args: Any, **kwargs: Any) -> Any:
            from vllm.config import CUDAGraphMode

            if self.kv_plan.source:
                kwargs["invalid_modes"] = {*(kwargs.get("invalid_modes") or ()), CUDAGraphMode.FULL}
            return original(*args, **kwargs)

        dispatcher.dispatch = dispatch

    def _update_states(self, scheduler_output: Any) -> Any:
        """Compact before anything else: the freed blocks may belong to another request of this very step."""
        for request_id in scheduler_output.finished_req_ids:
            self._forget(request_id)
        for command in getattr(scheduler_output, "compactions", ()):
            self._compact(command, scheduler_output.traces.get(command.request_id))
        for request_id in scheduler_output.scheduled_cached_reqs.resumed_req_ids:
            self._follow(request_id, self.requests[request_id])
        result = super()._update_states(scheduler_output)  # type: ignore[misc]
        for new in scheduler_output.scheduled_new_reqs:
            self._follow(new.req_id, self.requests[new.req_id])
        return result

    def _follow(self, request_id: str, state: Any) -> None:
        self._forget(request_id)
        spec = KvSpec.of(state.sampling_params.extra_args) if state.sampling_params is not None else None
        if spec is not None and self.kv_compactor is not None and state.prompt_token_ids is not None:
            store = self.kv_compactor.store
            self.kv_requests[request_id] = remember(spec, state.prompt_token_ids, state.mm_features, store)

    def _forget(self, request_id: str) -> None:
        request = self.kv_requests.pop(request_id, None)
        if request is not None:
            assert self.kv_compactor is not None
            self.kv_compactor.store.give_back(request.lent)

    def _execute_mm_encoder(self, scheduler_output: Any) -> Any:
        """The step's pass of the vision tower, with spans where somebody traces."""
        traces = getattr(scheduler_output, "traces", {}) if self._counts() else {}
        with engine_spans.encoding(traces, scheduler_output.scheduled_encoder_inputs):
            return super()._execute_mm_encoder(scheduler_output)  # type: ignore[misc]

    def _compact(self, command: Compaction, headers: Any) -> None:
        request = self.kv_requests.get(command.request_id)
        if self.kv_compactor is None or request is None:
            raise RuntimeError(f"the scheduler ordered a compaction that this worker cannot do: {self.kv_reasons}")
        started = time.perf_counter()
        self.kv_compactor.run(command, request)
        state, blocks = self.requests[command.request_id], (list(command.target),)
        state.block_ids = blocks
        row = self.input_batch.req_id_to_index.get(command.request_id)
        if row is not None:
            self.input_batch.block_table.clear_row(row)
            self.input_batch.block_table.add_row((list(command.target),), row)
        if self._counts():
            seconds = time.perf_counter() - started
            metrics.observe_compaction(seconds)
            metrics.observe_score("kv", request.spec.strategy, seconds)
            engine_spans.compacted(headers, seconds, request.spec.strategy, command.rows, command.keep)

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """One step; nothing stays armed after it, for steps without us and warm-up runs listen too."""
        try:
            return super().execute_model(*args, **kwargs)  # type: ignore[misc]
        finally:
            if self.kv_saliency is not None:
                self.kv_saliency.armed = True
            if self.kv_plan.source and self.kv_compactor is not None:
                self.kv_plan = StepPlan()
                self.kv_compactor.store.arm(self.kv_plan, self.device)

    def _counts(self) -> bool:
        return bool(self.vllm_config.parallel_config.rank == 0)

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        """Make cache lengths and slots physical, and plan which queries the step observes."""
        result = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)  # type: ignore[misc]
        if self.kv_saliency is not None:
            self.kv_saliency.armed = self._prefills()
        if not self.kv_requests:
            return result
        self._shorten(num_scheduled_tokens)
        self._plan_observation(num_scheduled_tokens)
        return result

    def _prefills(self) -> bool:
        """Whether the step computes tokens of a prompt; the norms of decoded tokens are never asked for."""
        states = (self.requests[request_id] for request_id in self.input_batch.req_ids)
        return any(state.num_computed_tokens < state.num_prompt_tokens for state in states)

    def _shorten(self, scheduled: Any) -> None:
        ids = self.input_batch.req_ids
        gone = np.array([self.kv_requests[i].evicted if i in self.kv_requests else 0 for i in ids], dtype=np.int32)
        if not gone.any():
            return
        count, total = len(ids), int(scheduled.sum())
        here = torch.from_numpy(gone)
        there = here.to(self.device)
        self.seq_lens[:count] -= there  # type: ignore[attr-defined]
        self.optimistic_seq_lens_cpu[:count] -= here  # type: ignore[attr-defined]
        per_token = torch.from_numpy(np.repeat(gone, scheduled)).to(self.device, torch.int64)
        self.input_batch.block_table.compute_slot_mapping(
            count,
            self.query_start_loc.gpu[: count + 1],  # type: ignore[attr-defined]
            self.positions[:total] - per_token,  # type: ignore[attr-defined]
        )

    def _plan_observation(self, scheduled: Any) -> None:
        assert self.kv_compactor is not None
        self.kv_plan = StepPlan()
        start = 0
        for request_id, count in zip(self.input_batch.req_ids, scheduled.tolist(), strict=True):
            request = self.kv_requests.get(request_id)
            if request is not None:
                computed = self.requests[request_id].num_computed_tokens
                seen = range(
                    max(computed, computed + count - request.window, request.observed_from()), computed + count
                )
                self.kv_plan.source += [start + position - computed for position in seen]
                self.kv_plan.target += request.lent_for(seen)
            start += count
        self.kv_compactor.store.arm(self.kv_plan, self.device)


def _head_offset(layer: Any) -> int:
    from vllm.distributed import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank() * layer.num_kv_heads)


def adopt(runner: Any) -> None:
    """Put the mixin in front of a freshly made runner; nothing has run on it yet."""
    cls = type(runner)
    runner.__class__ = type(f"Compacting{cls.__name__}", (CompactingRunnerMixin, cls), {})
    runner.kv_requests = {}
    runner.kv_reasons = ["the cache is not initialised"]
    runner.kv_compactor = None
    runner.kv_saliency = None
    runner.kv_plan = StepPlan()
