"""The scheduler that decides when a request is compacted; named by `--scheduler-cls`.

Whether, when and to how many rows depends only on what the scheduler knows, so no answer from a worker is
needed: async scheduling stays on, and all ranks get the same command.

Every output of a request whose tally has changed since its last one carries the tally, so the front end can build
`usage` at any time, as it does when it finds a stop string itself or aborts. The tally of an output holds all
compactions that were ordered before the output was processed; with async scheduling that includes one at the start
of the step that is already running.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler

from ..budget.errors import BudgetError
from ..budget.kv import KvSpec
from ..catalogue import KV
from ..telemetry import engine_spans, metrics
from ..vllm_compat.signatures import signature_problems
from ..vllm_compat.signatures.kv import signatures_of_runner
from . import ctrl_c
from .blocks import CompactingCoordinator
from .commands import CompactingOutput, Compaction
from .group_budgets import GroupBudgets
from .layer_groups import LayerGroups
from .suitability import group_refusals
from .tally import Tally, attach
from .window_slots import WindowLimits, WindowSlots

logger = init_logger("vllm.vllm_prune")


@dataclass(frozen=True)
class Planned:
    """The commands of the coming step for one request, in their order, with what they will be counted as.

    Attributes:
        commands: one per cache group that is compacted.
        freed: blocks that each of them gives back.
    """

    commands: tuple[Compaction, ...]
    freed: tuple[int, ...]

    @classmethod
    def of(cls, compactions: Iterable[tuple[Compaction, int]]) -> Planned:
        """From what the block managers have done."""
        commands, freed = zip(*compactions, strict=True)
        return cls(commands, freed)

    @property
    def request_id(self) -> str:
        """The request."""
        return self.commands[0].request_id


class CompactingMixin:
    """Plans compactions before each step; sits in front of vLLM's scheduler or async scheduler.

    Attributes:
        budgets: budgets of the requests that have one, by request id.
        tallies: what was done to those requests.
        unsent: the tallies that have changed since the request's last output.
        planned: compactions of the coming step.
        windows: who holds slots of the workers' query store.
        compacting: the block managers, those of full attention among them compacting; None where the engine's cannot
            evict.
        groups: the cache groups that are compacted, by group of layers.
    """

    running: list[Any]
    requests: dict[str, Any]
    kv_cache_manager: Any
    vllm_config: Any
    policy: SchedulingPolicy

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.budgets: dict[str, GroupBudgets] = {}
        self.tallies: dict[str, Tally] = {}
        self.unsent: dict[str, Tally] = {}
        self.planned: list[Planned] = []
        self.windows = WindowSlots(WindowLimits.of(self.vllm_config))
        coordinator = self.kv_cache_manager.coordinator
        speculates = self.vllm_config.speculative_config is not None
        refused = group_refusals(coordinator.single_type_managers, speculates)
        self.compacting = None if refused else CompactingCoordinator.upgrade(coordinator)
        compacted = () if self.compacting is None else tuple(self.compacting.compacting)
        self.groups = LayerGroups.of(coordinator.kv_cache_config.kv_cache_groups, compacted)
        metrics.set_model_name(metrics.served_name(self.vllm_config.model_config))

    def add_request(self, request: Any) -> None:
        """Note the request's budget."""
        spec = self._budget_of(request)
        reason = self._skipped(request, spec) if spec is not None else None
        if reason is not None:
            metrics.count_kv_skipped(reason)
        elif spec is not None:
            prompt = request.num_prompt_tokens
            limits = self.windows.limits
            places = [feature.mm_position for feature in request.mm_features]
            budgets = GroupBudgets.of(spec, prompt, places, limits, self.groups.layers)
            tally = Tally.of(budgets, budgets.merged(limits.clamped(spec, prompt)), self.groups.firsts)
            self.budgets[request.request_id] = budgets
            self.windows.register(request.request_id, spec, prompt)
            self.tallies[request.request_id] = self.unsent[request.request_id] = tally
            metrics.observe_kv_ratio(tally.kept_tokens / prompt)
        super().add_request(request)  # type: ignore[misc]

    def _budget_of(self, request: Any) -> KvSpec | None:
        """The request's budget. What is malformed must not end the engine: it is logged and counted."""
        params = request.sampling_params
        try:
            return KvSpec.of(params.extra_args) if params is not None else None
        except BudgetError as error:
            logger.warning("the cache of request %s is not evicted: %s", request.request_id, error)
            metrics.count_kv_skipped("malformed")
            return None

    def _skipped(self, request: Any, spec: KvSpec) -> str | None:
        if self.compacting is None:
            return "cache_groups"
        if len(self.groups.layers) == 1 and KV.strategy_class(spec.strategy).layered:
            return "layer_groups"
        if self.windows.limits.lacks(spec):
            return "signal"
        if request.resumable:
            return "resumable"
        return "prompt_embeds" if request.prompt_token_ids is None else None

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan, then schedule: the blocks that a plan frees can be given away in this very step."""
        self.windows.begin_step()
        if self.budgets:
            self.planned = self._plan()
            self._spare_compacted()
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        commands = [command for planned in self.planned for command in planned.commands]
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
            budgets = self.budgets.get(request.request_id)
            if budgets is None or request.is_prefill_chunk or request.num_computed_tokens == 0:
                continue
            due = self._due(request, budgets)
            if not due:
                continue
            compactions = self.compacting.compact(request.request_id, due)
            if compactions is None:
                metrics.count_kv_skipped("pool_full")
            else:
                planned.append(Planned.of(compactions))
        return planned

    def _due(self, request: Any, budgets: GroupBudgets) -> list[tuple[int, int, int]]:
        """Cache groups in which a request is to be compacted now, with the rows that it holds and keeps there."""
        assert self.compacting is not None
        due = []
        for number, members in enumerate(self.groups.members):
            evicted = self.compacting.compacting[members[0]].evicted.get(request.request_id)
            rows = request.num_computed_tokens - (evicted or 0)
            if budgets.due(number, rows, evicted is not None):
                due += [(member, rows, budgets.counts[number]) for member in members]
        return due

    def _spare_compacted(self) -> None:
        """Let preemption take the newest uncompacted request: a compacted one needs its full length to come back."""
        assert self.compacting is not None
        compacted = self.compacting.evicted
        if compacted and self.policy == SchedulingPolicy.FCFS:
            self.running.sort(key=lambda request: request.request_id not in compacted)

    def _count(self, planned: Planned) -> None:
        budgets, tally = self.budgets[planned.request_id], self.tallies[planned.request_id]
        evicted, freed = [0] * len(budgets.layers), [0] * len(budgets.layers)
        for command, blocks in zip(planned.commands, planned.freed, strict=True):
            number = self.groups.of_member(command.group)
            evicted[number] = command.rows - command.keep
            freed[number] += blocks
        tally.add(budgets.mean(evicted), freed)
        self.unsent[planned.request_id] = tally

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        """Keep a request waiting, too, as long as the workers cannot hold its window."""
        ready = super()._handle_blocked_waiting_request(request)  # type: ignore[misc]
        return bool(ready) and self.windows.acquire(request.request_id)

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """A request planned in this step and then chosen as a victim is not compacted after all."""
        self.planned = [planned for planned in self.planned if planned.request_id != request.request_id]
        return super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]

    def _get_local_prefix_cache_hit(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Shorten a hit that would leave less than a window of tokens to compute: their queries are observed.

        Looked up again instead of cut off, as the cache groups of a model may share no shorter prefix that is whole
        blocks: a state of a recurrence stands for one length only.

        Where something of the whole prompt is summed up nothing of a hit is left, or the sums, and with them what is
        kept, would depend on which requests came before.
        """
        result = super()._get_local_prefix_cache_hit(request, *args, **kwargs)  # type: ignore[misc]
        budgets = self.budgets.get(request.request_id)
        if budgets is None:
            return result
        _, hit, *rest = result
        whole = request.request_id in self.windows.whole
        longest = 0 if whole else max(0, request.num_tokens - budgets.spec.window)
        if hit <= longest:
            return result
        manager = self.kv_cache_manager
        blocks, hit, _ = manager.coordinator.find_longest_cache_hit(request.block_hashes, longest)
        return (manager.create_kv_cache_blocks(blocks), hit, *rest)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Forget a request, however it ends; its tally goes with the output of this step, where it has one."""
        result = super()._free_request(request, *args, **kwargs)  # type: ignore[misc]
        self.windows.release(request.request_id)
        if self.budgets.pop(request.request_id, None) is not None:
            self.unsent[request.request_id] = self.tallies.pop(request.request_id)
        return result

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """Let outputs carry the tallies that have changed."""
        # Requests that were aborted between two steps get no output.
        self.unsent = {name: tally for name, tally in self.unsent.items() if name in self.tallies}
        by_client = super().update_from_output(*args, **kwargs)  # type: ignore[misc]
        if self.unsent:
            for of_client in by_client.values():
                attach(of_client.outputs, self.unsent)
        return by_client


class CompactingScheduler:
    """The name for `--scheduler-cls`: makes the synchronous or the asynchronous kind, as vLLM would."""

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        """Build vLLM's scheduler with our mixin in front.

        Raises:
            RuntimeError: vLLM's internals are not those that this version was written for.
        """
        if problems := signature_problems(signatures_of_runner(vllm_config.use_v2_model_runner)):
            raise RuntimeError(f"KV eviction does not know this vLLM: {'; '.join(problems)}. Drop --scheduler-cls.")
        ctrl_c.ignore_when_launched()
        base = AsyncScheduler if vllm_config.scheduler_config.async_scheduling else Scheduler
        kind = type(f"Compacting{base.__name__}", (CompactingMixin, base), {})
        return kind(vllm_config, *args, **kwargs)
