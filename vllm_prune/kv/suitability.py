"""Whether the block managers and attention layers of a running engine can be compacted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..budget.errors import Finding, kv_finding

SCHEDULER = "vllm_prune.kv.scheduler.CompactingScheduler"
WORKER = "vllm_prune.kv.worker.CompactingWorker"
BESIDE = "groups of recurrent states (Mamba, gated delta nets) or of sliding windows"
"""Cache groups that eviction leaves alone, for people."""


def group_refusals(managers: Sequence[Any], speculates: bool = False) -> list[Finding]:
    """Why the block managers of an engine cannot evict.

    Args:
        managers: vLLM's, one per cache group.
        speculates: whether tokens are drafted.

    Returns:
        Nothing for one group of full attention, alone or beside groups of recurrent states or of sliding windows, which
        stay as they are; and nothing for layer groups.
    """
    from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager, MambaManager, SlidingWindowManager

    full = [manager for manager in managers if type(manager) is FullAttentionManager]
    others = [manager for manager in managers if type(manager) is not FullAttentionManager]
    layered = bool(managers) and all(_is_layer_group(getattr(manager, "kv_cache_spec", None)) for manager in managers)
    known = all(type(manager) in (MambaManager, SlidingWindowManager) for manager in others)
    if not layered and (len(full) != 1 or not known):
        kinds = ", ".join(type(manager).__name__ for manager in managers)
        return [_unknown_groups(kinds, len(managers))]
    return _modes_refused(others) or speculation_refusals(len(managers), speculates)


def _is_layer_group(spec: Any) -> bool:
    from .layer_groups import LayerGroupSpec

    return isinstance(spec, LayerGroupSpec)


def _modes_refused(holders: Sequence[Any]) -> list[Finding]:
    """Refusal of states that are kept after every block, for managers and specifications of cache groups alike."""
    if all(getattr(holder, "mamba_cache_mode", None) != "all" for holder in holders):
        return []
    detail = "states of a recurrence after every block have not been proven exact; use --mamba-cache-mode align"
    return [kv_finding("cache_groups", detail)]


def _unknown_groups(kinds: str, count: int) -> Finding:
    detail = f"{count} ({kinds}); one of full attention is supported, alone or beside {BESIDE}"
    return kv_finding("cache_groups", detail)


def speculation_refusals(groups: int, speculates: bool) -> list[Finding]:
    """Why an engine with so many cache groups cannot evict while it drafts tokens; empty when it can."""
    if groups == 1 or not speculates:
        return []
    return [kv_finding("cache_groups", "speculative decoding beside several has not been proven exact; drop it")]


def has_window(layer: Any) -> bool:
    """Whether an attention layer of vLLM sees only the rows of a sliding window."""
    window = getattr(layer.impl, "sliding_window", None)
    if isinstance(window, tuple | list):
        window = None if all(side == -1 for side in window) else window
    return window not in (None, -1)


def evictable_layers(layers: Sequence[Any]) -> list[Any]:
    """The attention layers whose caches are compacted: those of full attention.

    All layers where none is, so that `layer_refusals` names their windows.
    """
    return [layer for layer in layers if not has_window(layer)] or list(layers)


def full_attention_groups(groups: Sequence[Any]) -> tuple[int, ...]:
    """Indices of the cache groups that are compacted: the only one, the only one of full attention, or layer groups.

    Args:
        groups: `kv_cache_groups` of vLLM's cache configuration.

    Returns:
        Nothing where none or several others are, and where another group is of an unknown kind.
    """
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec

    if len(groups) == 1 or all(_is_layer_group(group.kv_cache_spec) for group in groups):
        return tuple(range(len(groups)))
    kinds = [type(group.kv_cache_spec) for group in groups]
    known = all(kind in (FullAttentionSpec, MambaSpec, SlidingWindowSpec) for kind in kinds)
    return (kinds.index(FullAttentionSpec),) if known and kinds.count(FullAttentionSpec) == 1 else ()


def grouping_refusals(groups: Sequence[Any], layers: Sequence[Any], speculates: bool) -> list[Finding]:
    """Why a worker's cache groups cannot be compacted; empty when they can.

    Args:
        groups: `kv_cache_groups` of vLLM's cache configuration.
        layers: the attention layers that would be compacted.
        speculates: whether tokens are drafted.
    """
    compacted = full_attention_groups(groups)
    if not compacted:
        kinds = ", ".join(type(group.kv_cache_spec).__name__ for group in groups)
        return [_unknown_groups(kinds, len(groups))]
    names = {name for index in compacted for name in groups[index].layer_names}
    strangers = {layer.layer_name for layer in layers} ^ names
    if strangers:
        detail = f"{min(strangers)} is not both of full attention and in its group"
        return [kv_finding("cache_groups", f"{detail}; do not give --disable-hybrid-kv-cache-manager")]
    modes = _modes_refused([group.kv_cache_spec for group in groups])
    return modes or speculation_refusals(len(groups), speculates)


def layer_refusals(layers: Sequence[Any]) -> list[Finding]:
    """Why the attention layers of a worker cannot be compacted; empty when they can."""
    if not layers:
        return [kv_finding("hybrid", "no layer caches rows")]
    findings = []
    for layer in layers:
        if has_window(layer):
            findings.append(kv_finding("sliding_window", layer.layer_name))
        if getattr(layer.impl, "alibi_slopes", None) is not None:
            findings.append(kv_finding("alibi", f"{layer.layer_name} takes distances from row numbers"))
        if getattr(layer, "use_mm_prefix", False):
            findings.append(kv_finding("prefix", f"{layer.layer_name} takes its ranges from row numbers"))
        if getattr(layer, "kv_sharing_target_layer_name", None) is not None:
            findings.append(kv_finding("shared_cache", layer.layer_name))
        if layer.head_size != getattr(layer, "head_size_v", layer.head_size):
            findings.append(kv_finding("head_sizes", layer.layer_name))
    return findings[:3]
