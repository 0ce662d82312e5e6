"""From a request's `pruning` field and the operator's configuration to the budgets in force, once per request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from .budget.canonical import Part, VisualSpec, canonical, kv_specs, options_of
from .budget.errors import BudgetError
from .budget.fields import (
    AUTO,
    Choice,
    Choices,
    KvField,
    OnLimit,
    PruningField,
    VisualField,
    is_auto,
    parse_pruning,
)
from .budget.kv import KvSpec
from .config.limits import KvLimits, Limits
from .config.load import PruneConfig, configuration
from .config.tenants import Tenant
from .grid import MODALITIES, Modality

XARG = "pruning"
"""Key of `vllm_xargs` that carries the field, as JSON text or as a preset's name."""

BOTH = "give `pruning` or `vllm_xargs.pruning`, not both"


@dataclass(frozen=True)
class Decision:
    """What is done with a request.

    Attributes:
        spec: canonical visual budget, None where nothing is pruned.
        kv: canonical KV budget, None where nothing is evicted.
        kv_otherwise: the same budget by other strategies, in order, where the request names none and the server's first
            choice cannot run on its model; see `support.choices`.
        clamped: one entry per value that the operator's limits changed.
        return_kept: whether the answer names the kept visual tokens of each item.
    """

    spec: VisualSpec | None
    clamped: tuple[dict[str, Any], ...] = ()
    kv: KvSpec | None = None
    return_kept: bool = False
    kv_otherwise: tuple[KvSpec, ...] = ()


def decide(config: PruneConfig, raw: object = None, preset: str | None = None, preset_param: str = "model") -> Decision:
    """Decide on a request. A pure function of its arguments.

    Args:
        config: the operator's configuration as it applies to the request's tenant.
        raw: the `pruning` value: object, preset name, or None for the server's default.
        preset: preset named in another way (`MODEL@NAME`); parts of `raw` come before its parts.
        preset_param: request field to blame when that preset does not exist.

    Raises:
        BudgetError: a budget that is malformed, unknown, or refused by the limits.
    """
    requested, base = _sources(config, raw, preset, preset_param)
    visual, kv = _part(config, "visual", requested, base), _part(config, "kv", requested, base)
    choices = config.visual_choices()
    spec, clamped = _limited(config.limits, choices, None if visual is None else canonical(visual, choices))
    kv_spec, *others = (None,) if kv is None else _limited_kv(config, kv, clamped) or (None,)
    return Decision(spec, tuple(clamped), kv_spec, visual is not None and visual.return_kept, tuple(others))


def requested_parts(config: PruneConfig, raw: object, preset: str | None) -> frozenset[str]:
    """Parts of the field, "visual" or "kv", that a request itself asks for, apart from the operator's defaults.

    Args:
        config, raw, preset: as of `decide`, which has accepted them.
    """
    requested, base = _sources(config, raw, preset, "model")
    present = {**{name: getattr(base, name) for name in base.model_fields_set},
               **{name: getattr(requested, name) for name in requested.model_fields_set}}  # fmt: skip
    return frozenset(name for name, part in present.items() if part is not None)


def _sources(
    config: PruneConfig, raw: object, preset: str | None, preset_param: str
) -> tuple[PruningField, PruningField]:
    """The field of a request, and the preset that its model names, whose parts come after the field's."""
    base = _preset(config, preset, preset_param) if preset is not None else PruningField()
    requested = _preset(config, raw, "pruning") if isinstance(raw, str) else parse_pruning({} if raw is None else raw)
    return requested, base


def _preset(config: PruneConfig, name: str, param: str) -> PruningField:
    if name not in config.presets:
        known = ", ".join(sorted(config.presets)) or "none are configured"
        raise BudgetError(f"unknown preset {name!r}; known: {known}", param)
    return config.presets[name]


def _part(config: PruneConfig, name: str, requested: PruningField, base: PruningField) -> Any:
    for source in (requested, base):
        if name in source.model_fields_set:
            return getattr(source, name)
    return getattr(config.defaults, name)


def _limited_kv(config: PruneConfig, field: KvField, clamped: list[dict[str, Any]]) -> tuple[KvSpec, ...]:
    """The budget by each strategy that it may come to; none where nothing is evicted."""
    limits, choices = config.limits, config.kv_choices()
    # Before the limits, so that what is malformed is said first.
    kv_specs(field, choices)
    changed: list[dict[str, Any]] = []
    specs = kv_specs(_limit_kv(field, limits.kv, limits.on_limit, changed), choices)
    clamped.extend(changed if specs else ())
    return specs


def _limited(
    limits: Limits, choices: Mapping[Modality, Choices], spec: VisualSpec | None
) -> tuple[VisualSpec | None, list[dict[str, Any]]]:
    clamped: list[dict[str, Any]] = []
    spec = spec or VisualSpec()
    parts = {m: _limit_part(spec.part(m), limits, choices[m][0], clamped) for m in MODALITIES}
    total = spec.max_tokens
    if total is not None and limits.min_tokens is not None and total < limits.min_tokens:
        total = _change(limits, clamped, "pruning.visual.max_tokens", total, limits.min_tokens, "min_tokens")
    if total is not None and limits.max_tokens is not None and total > limits.max_tokens:
        total = _change(limits, clamped, "pruning.visual.max_tokens", total, limits.max_tokens, "max_tokens")
    strict = limits.max_tokens is not None and limits.on_limit == "reject"
    limited = VisualSpec(parts["image"], parts["video"], total, limits.max_tokens, strict)
    if limits.max_tokens is not None:
        capped = {f"capped_{m}": _unnumbered(choices[m][0]) for m in MODALITIES}
        limited = replace(limited, **capped)  # type: ignore[arg-type]
    return (None if limited == VisualSpec() else limited), clamped


def _unnumbered(choice: Choice) -> Part:
    """A strategy with its options, for a budget whose numbers others give."""
    return Part(choice.strategy, options_of(choice.strategy, choice.options, "pruning.visual"))


def _limit_part(part: Part | None, limits: Limits, choice: Choice, clamped: list[dict[str, Any]]) -> Part | None:
    if part is None:
        if limits.max_keep is None or limits.max_keep == 1:
            return None
        _change(limits, clamped, "pruning.visual.keep", 1.0, limits.max_keep, "max_keep")
        return canonical(VisualField(keep=limits.max_keep), dict.fromkeys(MODALITIES, (choice,))).image
    if limits.strategies is not None and part.strategy not in limits.strategies:
        raise BudgetError(
            f"strategy {part.strategy!r} is not allowed here; allowed: {', '.join(limits.strategies)}",
            "pruning.visual.strategy",
        )
    if part.keep is None:
        return part
    if is_auto(part.keep):
        if limits.max_keep is None or limits.max_keep == 1:
            return part
        most = _change(limits, clamped, "pruning.visual.keep", AUTO, limits.max_keep, "max_keep")
        return replace(part, keep=repr(most))
    keep = float(part.keep)
    if limits.min_keep is not None and keep < limits.min_keep:
        keep = _change(limits, clamped, "pruning.visual.keep", keep, limits.min_keep, "min_keep")
    if limits.max_keep is not None and keep > limits.max_keep:
        keep = _change(limits, clamped, "pruning.visual.keep", keep, limits.max_keep, "max_keep")
    return part if keep == float(part.keep) else replace(part, keep=repr(keep))


def _limit_kv(field: KvField, limits: KvLimits, on_limit: OnLimit, clamped: list[dict[str, Any]]) -> KvField:
    """The field within the operator's bounds."""
    strategy = field.strategy
    if strategy is not None and limits.strategies is not None and strategy not in ("none", *limits.strategies):
        allowed = ", ".join(limits.strategies)
        raise BudgetError(f"KV strategy {strategy!r} is not allowed here; allowed: {allowed}", "pruning.kv.strategy")
    for name, low, high in (
        ("keep", limits.min_keep, limits.max_keep),
        ("max_tokens", limits.min_tokens, limits.max_tokens),
    ):
        requested, suffix = getattr(field, name), name.removeprefix("max_")
        if requested is None:
            continue
        if low is not None and requested < low:
            requested = _bound(on_limit, clamped, f"pruning.kv.{name}", requested, low, f"min_{suffix}")
        if high is not None and requested > high:
            requested = _bound(on_limit, clamped, f"pruning.kv.{name}", requested, high, f"max_{suffix}")
        field = field.model_copy(update={name: requested})
    window, buffer = min(field.window, limits.max_window), max(field.buffer, limits.min_buffer)
    # Only what the request names is clamped or refused: a default follows the limits.
    if "window" in field.model_fields_set and window < field.window:
        _bound(on_limit, clamped, "pruning.kv.window", field.window, window, "max_window")
    if "buffer" in field.model_fields_set and buffer > field.buffer:
        _bound(on_limit, clamped, "pruning.kv.buffer", field.buffer, buffer, "min_buffer")
    # A field that is set counts as named, so what stays as it is is not set.
    bounded = {"window": window, "buffer": buffer}
    return field.model_copy(update={key: value for key, value in bounded.items() if value != getattr(field, key)})


def _change(
    limits: Limits, clamped: list[dict[str, Any]], param: str, requested: Any, allowed: Any, reason: str
) -> Any:
    return _bound(limits.on_limit, clamped, param, requested, allowed, reason)


def _bound(
    on_limit: OnLimit, clamped: list[dict[str, Any]], param: str, requested: Any, allowed: Any, reason: str
) -> Any:
    if on_limit == "reject":
        raise BudgetError(f"{param} {requested} is outside the operator's limit {allowed} ({reason})", param)
    entry = {"param": param, "requested": requested, "applied": allowed, "reason": reason}
    if entry not in clamped:
        clamped.append(entry)
    return allowed


def config_for(tenant: Tenant | None) -> PruneConfig:
    """The process's configuration as it applies to a tenant, or to everybody."""
    return configuration() if tenant is None else _config_of(tenant)


@lru_cache
def _config_of(tenant: Tenant) -> PruneConfig:
    return configuration().for_tenant(tenant)


def field_of_xargs(value: object) -> object:
    """The field that `vllm_xargs.pruning` carries, as JSON text or as a preset's name. Raises `BudgetError`."""
    if not isinstance(value, str):
        raise BudgetError("vllm_xargs.pruning is JSON text or a preset's name", "vllm_xargs.pruning")
    if not value.lstrip().startswith("{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BudgetError(f"vllm_xargs.pruning is not JSON: {error}", "vllm_xargs.pruning") from None
