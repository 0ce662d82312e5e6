"""The scheduler that decides when a request is compacted; named by `--scheduler-cls`.

Whether, when and to how many rows depends only on what the scheduler owns, so no answer from a worker is
needed: async scheduling stays on, and all ranks get the same command.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler

from ..budget.kv import REPORT, KvSpec
from ..telemetry import engine_spans, metrics
from ..vllm_compat.signatures import KV_SIGNATURES, signature_problems
from . import ctrl_c
from .blocks import CompactingManager
from .commands import CompactingOutput, Compaction
from .suitability import group_refusals


@dataclass
class Tally:
    """What eviction did to one request, over its whole life."""

    ticket: str
    strategy: str
    prompt_tokens: int
    kept_tokens: int
    evicted_tokens: int = 0
    freed_blocks: int = 0
    compactions: int = 0


@dataclass(frozen=True)
class Planned:
    """A command of the coming step, with what it will be counted as."""

    command: Compaction
    freed: int


class CompactingMixin:
    """Plans compactions before each step; sits in front of vLLM's scheduler or async scheduler."""

    running: list[Any]
    requests: dict[str, Any]
    kv_cache_manager: Any
    vllm_config: Any
    policy: SchedulingPolicy

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kv_specs: dict[str, KvSpec] = {}
        self.tallies: dict[str, Tally] = {}
        self.planned: list[Planned] = []
        managers = self.kv_cache_manager.coordinator.single_type_managers
        self.compacting = None if group_refusals(managers) else CompactingManager.adopt(managers[0])
        metrics.set_model_name(metrics.served_name(self.vllm_config.model_config))

    def add_request(self, request: Any) -> None:
        """Note the request's budget."""
        params = request.sampling_params
        spec = KvSpec.of(params.extra_args) if params is not None else None
        reason = self._skipped(request) if spec is not None else None
        if reason is not None:
            metrics.count_kv_skipped(reason)
        elif spec is not None:
            self.kv_specs[request.request_id] = spec
            metrics.observe_kv_ratio(min(1.0, spec.count(request.num_prompt_tokens) / request.num_prompt_tokens))
        super().add_request(request)  # type: ignore[misc]

    def _skipped(self, request: Any) -> str | None:
        if self.compacting is None:
            return "cache_groups"
        if request.resumable:
            return "resumable"
        return "prompt_embeds" if request.prompt_token_ids is None else None

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan, then schedule: the blocks that a plan frees can be given away in this very step."""
        if self.kv_specs:
            self.planned = self._plan()
            self._spare_compacted()
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        commands = [planned.command for planned in self.planned]
        traces = engine_spans.contexts(self.requests, output, [command.request_id for command in commands])
        if commands or traces:
            output.__class__ = CompactingOutput
            output.compactions, output.traces = commands, traces
        for planned in self.planned:
            self._count(planned)
        self.planned = []
        return output

    def _plan(self) -> list[Planned]:
        assert self.compacting is not None
        planned = []
        for request in self.running:
            spec = self.kv_specs.get(request.request_id)
            if spec is None or request.is_prefill_chunk or request.num_computed_tokens == 0:
                continue
            gone = self.compacting.evicted.get(request.request_id)
            rows = request.num_computed_tokens - (gone or 0)
            if not spec.due(request.num_prompt_tokens, rows, gone is not None):
                continue
            done = self.compacting.compact(request.request_id, rows, spec.count(request.num_prompt_tokens))
            if done is None:
                metrics.count_kv_skipped("pool_full")
            else:
                planned.append(Planned(*done))
        return planned

    def _spare_compacted(self) -> None:
        """Let preemption take the newest uncompacted request: a compacted one needs its full length to come back."""
        assert self.compacting is not None
        gone = self.compacting.evicted
        if gone and self.policy == SchedulingPolicy.FCFS:
            self.running.sort(key=lambda request: request.request_id not in gone)

    def _count(self, planned: Planned) -> None:
        request = self.requests[planned.command.request_id]
        spec = self.kv_specs[request.request_id]
        tally = self._tally(request, spec)
        tally.compactions += 1
        tally.evicted_tokens += planned.command.rows - planned.command.keep
        tally.freed_blocks += planned.freed
        metrics.count_compaction(spec.strategy, planned.command.rows - planned.command.keep, planned.freed)

    def _tally(self, request: Any, spec: KvSpec) -> Tally:
        prompt = request.num_prompt_tokens
        fresh = Tally(spec.ticket, spec.strategy, prompt, min(prompt, spec.count(prompt)))
        return self.tallies.setdefault(request.request_id, fresh)

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """A request planned in this step and then chosen as a victim is not compacted after all."""
        self.planned = [p for p in self.planned if p.command.request_id != request.request_id]
        return super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]

    def _get_local_prefix_cache_hit(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Shorten a hit that would leave fewer than W tokens to compute: their queries are the window."""
        found = super()._get_local_prefix_cache_hit(request, *args, **kwargs)  # type: ignore[misc]
        spec = self.kv_specs.get(request.request_id)
        if spec is None:
            return found
        assert self.compacting is not None
        blocks, hit, *rest = found
        window = spec.window_of(spec.count(request.num_prompt_tokens))
        size = self.compacting.block_size
        most = max(0, request.num_tokens - window) // size * size
        if hit <= most:
            return found
        return (self.kv_cache_manager.truncate_computed_blocks(blocks, most), most, *rest)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """However a request ends: hand its tally to its last output, and forget it."""
        transfer, *rest = super()._free_request(request, *args, **kwargs)  # type: ignore[misc]
        spec = self.kv_specs.pop(request.request_id, None)
        if spec is None:
            return (transfer, *rest)
        tally = self._tally(request, spec)
        del self.tallies[request.request_id]
        return ({**(transfer or {}), REPORT: asdict(tally)}, *rest)


class CompactingScheduler:
    """The name for `--scheduler-cls`: makes the synchronous or the asynchronous kind, as vLLM would."""

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        """Build vLLM's scheduler with our mixin in front.

        Raises:
            RuntimeError: vLLM's internals are not those that this version was written for.
        """
        if problems := signature_problems(KV_SIGNATURES):
            raise RuntimeError(f"KV eviction does not know this vLLM: {'; '.join(problems)}. Drop --scheduler-cls.")
        ctrl_c.ignore_when_launched()
        base = AsyncScheduler if vllm_config.scheduler_config.async_scheduling else Scheduler
        kind = type(f"Compacting{base.__name__}", (CompactingMixin, base), {})
        return kind(vllm_config, *args, **kwargs)
