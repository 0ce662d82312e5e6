"""`OutputProcessor.process_outputs`, wrapped: takes the scheduler's KV reports off engine outputs."""

from __future__ import annotations

from functools import wraps
from typing import Any

from ..telemetry import metrics
from .signatures import holder

COUNTS = ("compactions", "evicted_tokens", "freed_blocks")


def patch_output_processor() -> None:
    """Take the scheduler's reports off the outputs that carry one, before anybody else sees them.

    Transfer parameters are the one field of an engine's output that takes what a scheduler wants to say
    about a request. With a KV connector, their other user, eviction is refused.
    """
    processor = holder("OutputProcessor.process_outputs")
    if getattr(processor, "vllm_prune_patched", False):
        return
    original = processor.process_outputs

    @wraps(original)
    def process(self: Any, engine_core_outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        for output in engine_core_outputs:
            if output.kv_transfer_params is not None:
                _take_report(output, self.request_states.get(output.request_id))
        return original(self, engine_core_outputs, *args, **kwargs)

    processor.process_outputs = process
    processor.vllm_prune_patched = True


def _count_groups(tally: dict[str, Any], before: dict[str, Any]) -> None:
    """Count what is new in each group of layers, where there are several."""
    freed = [group["freed_blocks"] for group in before.get("layer_groups", ())] or [0] * len(tally["layer_groups"])
    for group, blocks in zip(tally["layer_groups"], freed, strict=True):
        metrics.count_group_blocks(group["first_layer"], group["freed_blocks"] - blocks)


def _take_report(output: Any, state: Any) -> None:
    """Count what is new in a report, and hand it to its request.

    Metrics are counted here, so that they equal what `usage` says: an engine works on for a step or two after the front
    end has found a stop string, and vLLM ignores those outputs, too.

    Args:
        output: vLLM's `EngineCoreOutput`.
        state: vLLM's `RequestState` of its request, None when the front end has ended it.
    """
    from ..budget.kv import REPORT
    from ..request import live

    tally = output.kv_transfer_params.pop(REPORT, None)
    output.kv_transfer_params = output.kv_transfer_params or None
    if tally is None or state is None:
        return
    before = getattr(state, "vllm_prune_tally", dict.fromkeys(COUNTS, 0))
    state.vllm_prune_tally = tally
    compactions, evicted, freed = (tally[name] - before[name] for name in COUNTS)
    if compactions:
        metrics.count_compaction(tally["strategy"], evicted, freed, compactions)
        _count_groups(tally, before)
    if (context := live(tally["ticket"])) is not None:
        context.record_tally(output.request_id, tally)
