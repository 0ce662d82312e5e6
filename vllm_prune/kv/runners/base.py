"""What a model runner of vLLM needs for requests whose cache may be shorter than their text, whatever its generation.

Everything that vLLM keeps stays logical: positions, stop conditions, sampling. Only what attention reads
becomes physical: block tables, sequence lengths and slots.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from ...budget.errors import BudgetError, Finding, kv_finding
from ...budget.kv import KvSpec
from ...config.worker_facts import WorkerFacts
from ...telemetry import engine_spans, metrics
from ...visual.scorers.trained import network_of
from ..cache import open_rows
from ..cached_request import CachedRequest, StepPlans, Stores, track, untrack
from ..commands import Compaction
from ..compaction import Compactor, transient_bytes
from ..coordinates import AXES, CoordinateStore
from ..gates import VisualGates
from ..layer_groups import LayerGroups, of_engine
from ..lengths import GroupLengths
from ..packed_layout import UnknownLayout
from ..prompt_queries import PromptQueries
from ..query_window import QueryStore
from ..saliency import SaliencyStore
from ..suitability import evictable_layers, full_attention_groups, grouping_refusals, layer_refusals
from ..window_slots import GATED, WindowLimits
from .facts import decoder_attention, head_offset, rotation_of, sum_over_ranks
from .plain_graphs import PlainSteps


class CompactingRunner(PlainSteps):
    """In front of vLLM's runner class; `make_compacting` puts a subclass of it there.

    Attributes:
        kv_number: by which compiled code finds the stores of this runner.
        kv_requests: requests with a KV budget.
        kv_findings: why this worker cannot compact; empty when it can.
        kv_store: the windows' queries, allocated before vLLM sizes the cache.
        kv_sums: sums over prompts' queries, allocated before anything is compiled; None where there is no room for any.
        kv_gates: the gates of `dyvte` and what they read; None where none are configured, or none could read it.
        kv_groups: the cache groups that are compacted, by group of layers.
        kv_group_lengths: lengths of each group of layers in the step at hand; none where there is one cache group.
    """

    kv_number: int
    kv_requests: dict[str, CachedRequest]
    kv_findings: list[Finding]
    kv_compactor: Compactor | None
    kv_saliency: SaliencyStore | None
    kv_coordinates: CoordinateStore | None
    kv_store: QueryStore | None
    kv_sums: PromptQueries | None
    kv_gates: VisualGates | None
    kv_groups: LayerGroups
    kv_group_lengths: list[GroupLengths]
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
        """Hook the input norms and the first layer before anything is compiled.

        Raises:
            ScorerError: configured gates do not fit the model.
        """
        gates = network_of(GATED, self.vllm_config)
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        names = [layer.layer_name for layer in self._evictable_layers()]
        store = SaliencyStore(self.model, names, self.device, self.kv_number) if names else None
        self.kv_saliency = store if store is not None and store.hooked else None
        model = self.vllm_config.model_config
        if names and model.uses_mrope and model.mrope_num_dims == AXES:
            coordinates = CoordinateStore(self.model, names[0], self.device, self.kv_number)
            self.kv_coordinates = coordinates if coordinates.hooked else None
        layers, capacity = self._evictable_layers(), WorkerFacts.of(self.vllm_config).prompt_queries
        if capacity and not layer_refusals(layers):
            made = PromptQueries(self.model, layers, capacity, self.max_num_tokens, self.device, self.kv_number)
            self.kv_sums = made if made.hooked else None
        if gates is not None and not layer_refusals(layers):
            most = WindowLimits.of(self.vllm_config).requests
            reading = VisualGates(self.model, names, gates, most, self.max_num_tokens, self.device, self.kv_number)
            self.kv_gates = reading if reading.hooked else None

    def _evictable_layers(self) -> list[Any]:
        return evictable_layers(decoder_attention(self.compilation_config))

    def get_kv_cache_spec(self) -> Mapping[str, Any]:
        """As vLLM's, told apart by layer group where the operator has configured several."""
        return of_engine(super().get_kv_cache_spec(), self.vllm_config)  # type: ignore[misc]

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
            size = transient_bytes(layers[0], self.vllm_config.model_config.max_model_len, self.device)
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
        groups = kv_cache_config.kv_cache_groups
        members = [index for of_one in self.kv_groups.members for index in of_one]
        size = groups[members[0]].kv_cache_spec.block_size
        if self.kv_saliency is not None:
            self.kv_saliency.allocate(kv_cache_config.num_blocks * size)
        if self.kv_coordinates is not None:
            names = tuple(groups[index].layer_names[0] for index in members)
            self.kv_coordinates.allocate(kv_cache_config.num_blocks * size, names)
        self.kv_compactor = Compactor(
            layers,
            rows,
            store,
            self.kv_saliency,
            rotation_of(self.model, layers[0]),
            size,
            head_offset(layers[0]),
            kv_cache_config.needs_kv_cache_zeroing,
        )
        self.kv_compactor.coordinates, self.kv_compactor.prompt_queries = self.kv_coordinates, self.kv_sums
        self.kv_compactor.gates = self.kv_gates
        self.kv_compactor.total = sum_over_ranks
        self._group_layers(groups, layers)

    def _group_layers(self, groups: Sequence[Any], layers: Sequence[Any]) -> None:
        """Tell the compactor which layers a cache group holds, and give each group of layers lengths of its own."""
        assert self.kv_compactor is not None
        numbers = {layer.layer_name: number for number, layer in enumerate(layers)}
        self.kv_compactor.cache_groups = {
            index: (number, [numbers[name] for name in groups[index].layer_names])
            for number, members in enumerate(self.kv_groups.members)
            for index in members
        }
        if len(groups) > 1:
            for members in self.kv_groups.members:
                attention = [one for index in members for one in self.attn_groups[index]]
                self.kv_group_lengths.append(GroupLengths(attention, self.max_num_reqs, self.device))

    def _cache_findings(self, groups: Sequence[Any], layers: Sequence[Any]) -> list[Finding]:
        """Why these layers in these cache groups cannot be compacted; fixes which groups are."""
        findings = [*layer_refusals(layers)]
        if not findings:
            findings += grouping_refusals(groups, layers, self.vllm_config.speculative_config is not None)
        if not findings:
            compacted = full_attention_groups(groups)
            self.kv_groups = LayerGroups.of(groups, compacted)
            if any(group.kernel_block_stride for index in compacted for group in self.attn_groups[index]):
                findings.append(kv_finding("layout", "pages of other layers lie between a block's parts"))
        return findings

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
            stores, limits = self._stores(), WindowLimits.of(self.vllm_config)
            if not stores.lack(spec):
                prompt, layers = state.prompt_token_ids, self.kv_groups.layers
                self.kv_requests[request_id] = track(spec, prompt, state.mm_features, stores, limits, layers)

    def _untrack(self, request_id: str) -> None:
        request = self.kv_requests.pop(request_id, None)
        if request is not None:
            untrack(request, self._stores())

    def _stores(self) -> Stores:
        assert self.kv_store is not None
        return Stores(self.kv_store, self.kv_sums, self.kv_gates)

    def _encoding(self, traces: Any, items: Any) -> AbstractContextManager[None]:
        """Spans of the step's pass of the vision tower, where requests are traced."""
        return engine_spans.encoding(traces if self._is_first_rank() else {}, items)

    def _compact(self, scheduler_output: Any) -> None:
        """Carry out the scheduler's commands for this step."""
        commands = getattr(scheduler_output, "compactions", ())
        for request_id, of_one in groupby(commands, key=attrgetter("request_id")):
            self._compact_one(request_id, list(of_one), scheduler_output.traces.get(request_id))

    def _compact_one(self, request_id: str, commands: list[Compaction], headers: Any) -> None:
        request = self.kv_requests.get(request_id)
        if self.kv_compactor is None or request is None:
            why = "; ".join(finding.text for finding in self.kv_findings)
            raise RuntimeError(f"the scheduler ordered a compaction that this worker cannot do: {why}")
        started, scoring = time.perf_counter(), 0.0
        for command in commands:
            scoring += self.kv_compactor.run(command, request)
            self._replace_blocks(request_id, list(command.target), command.group)
        if self._is_first_rank():
            seconds, strategy = time.perf_counter() - started, request.budgets.spec.strategy
            metrics.observe_compaction(seconds)
            metrics.observe_score("kv", strategy, scoring)
            engine_spans.compacted(headers, seconds, strategy, commands[0].rows, commands[0].keep)

    def _replace_blocks(self, request_id: str, blocks: list[int], group: int) -> None:
        """Let a request's block table of one cache group hold these blocks only; its other tables stay."""
        raise NotImplementedError

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """One step; nothing stays armed after it, as attention also runs in dummy steps and warm-up."""
        try:
            return super().execute_model(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._record_slots(True)
            if self.kv_store is not None:
                self._stores().disarm()
            for lengths in self.kv_group_lengths:
                lengths.end()

    def _is_first_rank(self) -> bool:
        return bool(self.vllm_config.parallel_config.rank == 0)

    def _evicted(self, request_ids: Sequence[str]) -> np.ndarray:
        """int32 [layer groups, R], evicted rows of each request of the batch in each group of layers."""
        none = [0] * len(self.kv_groups.layers)
        requests = (self.kv_requests.get(request_id) for request_id in request_ids)
        evicted = [request.evicted if request is not None else none for request in requests]
        return np.array(evicted, dtype=np.int32).reshape(-1, len(none)).T.copy()

    def _plan_observation(self, request_ids: Iterable[str], computed: Iterable[int], scheduled: Iterable[int]) -> None:
        """Choose the tokens of the step whose queries are kept, and those of which something is summed up.

        Args:
            request_ids: requests of the batch, in its order.
            computed: tokens of each that are computed when the step starts.
            scheduled: tokens of each that the step computes.
        """
        requests = [self.kv_requests.get(request_id) for request_id in request_ids]
        self._stores().arm(StepPlans.of(requests, computed, scheduled))


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
    runner.kv_gates = None
    runner.kv_groups = LayerGroups((0,), (1,), ((0,),))
    runner.kv_group_lengths = []
