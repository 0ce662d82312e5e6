"""What a model runner of vLLM needs for requests whose cache may be shorter than their text, whatever its generation.

Everything that vLLM keeps stays logical: positions, stop conditions, sampling. Only what attention reads
becomes physical: block tables, sequence lengths and slots.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from ...budget.errors import BudgetError, Finding, kv_finding
from ...budget.kv import KvSpec
from ...config.worker_facts import WorkerFacts
from ...telemetry import engine_spans, metrics
from ..cache import UnknownLayout, open_rows
from ..commands import Compaction
from ..compaction import CachedRequest, Compactor, track, transient_bytes
from ..coordinates import AXES, CoordinateStore
from ..lengths import GroupLengths
from ..prompt_queries import PromptQueries, SumPlan
from ..query_window import QueryStore, StepPlan
from ..saliency import SaliencyStore
from ..suitability import evictable_layers, full_attention_group, grouping_refusals, layer_refusals
from ..window_slots import WindowLimits, sums
from .plain_graphs import PlainSteps


class CompactingRunner(PlainSteps):
    """In front of vLLM's runner class; `make_compacting` puts a subclass of it there.

    Attributes:
        kv_requests: requests with a KV budget.
        kv_findings: why this worker cannot compact; empty when it can.
        kv_store: the windows' queries, allocated before vLLM sizes the cache.
        kv_sums: sums over prompts' queries, allocated before anything is compiled; None where there is no room for any.
        kv_group: index of the cache group that is compacted.
        kv_group_lengths: its lengths in the step at hand; None where the model has no other cache group.
    """

    kv_requests: dict[str, CachedRequest]
    kv_findings: list[Finding]
    kv_compactor: Compactor | None
    kv_saliency: SaliencyStore | None
    kv_coordinates: CoordinateStore | None
    kv_store: QueryStore | None
    kv_sums: PromptQueries | None
    kv_group: int
    kv_group_lengths: GroupLengths | None
    # vLLM's runner.
    vllm_config: Any
    compilation_config: Any
    cache_config: Any
    model: Any
    max_num_tokens: int
    max_num_reqs: int
    attn_groups: list[list[Any]]
    device: torch.device

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Hook the input norms and the first layer before anything is compiled."""
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        names = [layer.layer_name for layer in self._evictable_layers()]
        store = SaliencyStore(self.model, names, self.device) if names else None
        self.kv_saliency = store if store is not None and store.hooked else None
        model = self.vllm_config.model_config
        if names and model.uses_mrope and model.mrope_num_dims == AXES:
            coordinates = CoordinateStore(self.model, names[0], self.device)
            self.kv_coordinates = coordinates if coordinates.hooked else None
        layers, capacity = self._evictable_layers(), WorkerFacts.of(self.vllm_config).prompt_queries
        if capacity and not layer_refusals(layers):
            made = PromptQueries(self.model, layers, capacity, self.max_num_tokens, self.device)
            self.kv_sums = made if made.hooked else None

    def _evictable_layers(self) -> list[Any]:
        from vllm.model_executor.layers.attention import Attention
        from vllm.v1.attention.backend import AttentionType

        layers = self.compilation_config.static_forward_context.values()
        return evictable_layers(
            [layer for layer in layers if isinstance(layer, Attention) and layer.attn_type == AttentionType.DECODER]
        )

    def reserve_windows(self) -> QueryStore | None:
        """Allocate the windows' queries; None where nothing can be compacted anyway."""
        layers = self._evictable_layers()
        if self.kv_store is None and not layer_refusals(layers):
            slots = WindowLimits.of(self.vllm_config).slots
            self.kv_store = QueryStore(layers, slots, self.max_num_tokens, self.device)
        return self.kv_store

    def profile_run(self, *args: Any, **kwargs: Any) -> None:
        """Let the peak that vLLM measures include that of a compaction, which never runs beside a forward pass."""
        layers = self._evictable_layers()
        if not layer_refusals(layers):
            size = transient_bytes(layers[0], self.vllm_config.model_config.max_model_len)
            peak = torch.empty(size, dtype=torch.uint8, device=self.device)
            del peak
        super().profile_run(*args, **kwargs)  # type: ignore[misc]

    def initialize_kv_cache(self, kv_cache_config: Any, is_profiling: bool = False, **kwargs: Any) -> None:
        """Determine the layout of the KV caches after vLLM has allocated them."""
        super().initialize_kv_cache(kv_cache_config, is_profiling, **kwargs)  # type: ignore[misc]
        if is_profiling:
            return
        layers = self._evictable_layers()
        self.kv_findings = self._cache_findings(kv_cache_config.kv_cache_groups, layers)
        if self.kv_findings:
            return
        try:
            rows = open_rows(layers)
        except UnknownLayout as error:
            self.kv_findings = [kv_finding("layout", str(error))]
            return
        store = self.reserve_windows()
        assert store is not None
        group = kv_cache_config.kv_cache_groups[self.kv_group]
        size = group.kv_cache_spec.block_size
        if self.kv_saliency is not None:
            self.kv_saliency.allocate(kv_cache_config.num_blocks * size)
        if self.kv_coordinates is not None:
            self.kv_coordinates.allocate(kv_cache_config.num_blocks * size)
        self.kv_compactor = Compactor(
            layers,
            rows,
            store,
            self.kv_saliency,
            self._rotation(layers[0]),
            size,
            _head_offset(layers[0]),
            kv_cache_config.needs_kv_cache_zeroing,
        )
        self.kv_compactor.coordinates, self.kv_compactor.prompt_queries = self.kv_coordinates, self.kv_sums
        self.kv_compactor.total = _sum_over_ranks
        if len(kv_cache_config.kv_cache_groups) > 1:
            self.kv_group_lengths = GroupLengths(self.attn_groups[self.kv_group], self.max_num_reqs, self.device)

    def _cache_findings(self, groups: Sequence[Any], layers: Sequence[Any]) -> list[Finding]:
        """Why these layers in these cache groups cannot be compacted; fixes which group is."""
        findings = [*layer_refusals(layers)]
        if not findings:
            findings += grouping_refusals(groups, layers, self.vllm_config.speculative_config is not None)
        if not findings:
            self.kv_group = full_attention_group(groups) or 0
            if any(group.kernel_block_stride for group in self.attn_groups[self.kv_group]):
                findings.append(kv_finding("layout", "pages of other layers lie between a block's parts"))
        return findings

    def _rotation(self, layer: Any) -> torch.Tensor | None:
        """The rotary table beside an attention layer, where it turns halves of the whole head."""
        parent = layer.layer_name.rpartition(".")[0]
        module = dict(self.model.named_modules()).get(f"{parent}.rotary_emb")
        table = getattr(module, "cos_sin_cache", None)
        if table is None or not getattr(module, "is_neox_style", False) or table.shape[1] != layer.head_size:
            return None
        return table.float()

    def _track(self, request_id: str, state: Any) -> None:
        """Follow a request that is about to be prefilled, if it has a budget.

        Args:
            request_id: its id.
            state: what the runner has of it, with `sampling_params`, `prompt_token_ids` and `mm_features`.
        """
        self._untrack(request_id)
        try:
            spec = KvSpec.of(state.sampling_params.extra_args) if state.sampling_params is not None else None
        except BudgetError:
            # The scheduler has logged it, and orders nothing.
            return
        if spec is not None and self.kv_compactor is not None and state.prompt_token_ids is not None:
            store, limits = self.kv_compactor.store, WindowLimits.of(self.vllm_config)
            if not sums(spec) or self.kv_sums is not None:
                request = track(spec, state.prompt_token_ids, state.mm_features, store, limits, self.kv_sums)
                self.kv_requests[request_id] = request

    def _untrack(self, request_id: str) -> None:
        request = self.kv_requests.pop(request_id, None)
        if request is not None:
            assert self.kv_compactor is not None
            self.kv_compactor.store.release(request.window_slots)
            if request.sum_slot is not None:
                assert self.kv_sums is not None
                self.kv_sums.release(request.sum_slot)

    def _encoding(self, traces: Any, items: Any) -> AbstractContextManager[None]:
        """Spans of the step's pass of the vision tower, where requests are traced."""
        return engine_spans.encoding(traces if self._is_first_rank() else {}, items)

    def _compact(self, scheduler_output: Any) -> None:
        """Carry out the scheduler's commands for this step."""
        for command in getattr(scheduler_output, "compactions", ()):
            self._compact_one(command, scheduler_output.traces.get(command.request_id))

    def _compact_one(self, command: Compaction, headers: Any) -> None:
        request = self.kv_requests.get(command.request_id)
        if self.kv_compactor is None or request is None:
            why = "; ".join(finding.text for finding in self.kv_findings)
            raise RuntimeError(f"the scheduler ordered a compaction that this worker cannot do: {why}")
        started = time.perf_counter()
        scoring = self.kv_compactor.run(command, request)
        assert command.group == self.kv_group
        self._replace_blocks(command.request_id, list(command.target))
        if self._is_first_rank():
            seconds = time.perf_counter() - started
            metrics.observe_compaction(seconds)
            metrics.observe_score("kv", request.spec.strategy, scoring)
            engine_spans.compacted(headers, seconds, request.spec.strategy, command.rows, command.keep)

    def _replace_blocks(self, request_id: str, blocks: list[int]) -> None:
        """Let a request's block table of the compacted group hold these blocks only; its other tables stay."""
        raise NotImplementedError

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """One step; nothing stays armed after it, as attention also runs in dummy steps and warm-up."""
        try:
            return super().execute_model(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._record_slots(True)
            for store in (self.kv_store, self.kv_sums):
                if store is not None:
                    store.disarm()
            if self.kv_group_lengths is not None:
                self.kv_group_lengths.end()

    def _is_first_rank(self) -> bool:
        return bool(self.vllm_config.parallel_config.rank == 0)

    def _evicted(self, request_ids: Sequence[str]) -> np.ndarray:
        """int32 [R], evicted rows of each request of the batch."""
        requests = (self.kv_requests.get(request_id) for request_id in request_ids)
        return np.array([request.evicted if request is not None else 0 for request in requests], dtype=np.int32)

    def _plan_observation(self, request_ids: Iterable[str], computed: Iterable[int], scheduled: Iterable[int]) -> None:
        """Choose the tokens of the step whose queries are kept.

        Args:
            request_ids: requests of the batch, in its order.
            computed: tokens of each that are computed when the step starts.
            scheduled: tokens of each that the step computes.
        """
        assert self.kv_compactor is not None
        plan, summing, start = StepPlan(), SumPlan(), 0
        for request_id, before, count in zip(request_ids, computed, scheduled, strict=True):
            request = self.kv_requests.get(request_id)
            if request is not None and request.window_slots:
                first = max(before, before + count - request.window, request.observed_from())
                observed = range(first, before + count)
                plan.source += [start + position - before for position in observed]
                plan.target += request.slots_of(observed)
            summed = range(0) if request is None else request.summed(before, before + count)
            if request is not None and request.sum_slot is not None and summed:
                summing.parts.append((request.sum_slot, start + summed.start - before, start + summed.stop - before))
            start += count
        self.kv_compactor.store.arm(plan)
        if self.kv_sums is not None:
            self.kv_sums.arm(summing)


def _head_offset(layer: Any) -> int:
    from vllm.distributed import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank() * layer.num_kv_heads)


def _sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    from vllm.distributed import tensor_model_parallel_all_reduce

    # It hands back its argument where there is one rank.
    return tensor_model_parallel_all_reduce(tensor)


def make_compacting(runner: Any, kind: type[CompactingRunner]) -> None:
    """Put a subclass of `CompactingRunner` in front of a runner's class, before the runner has loaded its model."""
    cls = type(runner)
    runner.__class__ = type(f"Compacting{cls.__name__}", (kind, cls), {"__module__": kind.__module__})
    runner.kv_requests = {}
    runner.kv_findings = [kv_finding("worker", "its cache is not initialised")]
    runner.kv_compactor = None
    runner.kv_saliency = None
    runner.kv_coordinates = None
    runner.kv_store = None
    runner.kv_sums = None
    runner.kv_group = 0
    runner.kv_group_lengths = None
