"""From a request to a decision: which visual budget applies, what was clamped, and what came of it.

One place for both servers. Ours puts a `Scope` around the request; under plain `vllm serve` the budget
comes from `vllm_xargs` and there is no scope. Either way `decide` is asked exactly once per request.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

from .budget.canonical import Part, VisualSpec, canonical, canonical_kv
from .budget.errors import BudgetError
from .budget.fields import (
    DEFAULT_KV_STRATEGY,
    DEFAULT_STRATEGY,
    KvField,
    OnLimit,
    PruningField,
    VisualField,
    parse_pruning,
)
from .budget.kv import KvSpec
from .config.limits import KvLimits, Limits
from .config.load import PruneConfig, configuration
from .config.tenants import Tenant, named
from .grid import MODALITIES, Modality
from .telemetry import metrics

XARG = "pruning"
"""Key of `vllm_xargs` that carries the field, as JSON text or as a preset's name."""


@dataclass(frozen=True)
class Decision:
    """What is done with a request.

    Attributes:
        spec: canonical visual budget, None where nothing is pruned.
        kv: canonical KV budget, None where nothing is evicted.
        clamped: one entry per value that the operator's limits changed.
    """

    spec: VisualSpec | None
    clamped: tuple[dict[str, Any], ...] = ()
    kv: KvSpec | None = None


@dataclass
class Scope:
    """One request on our server: the decision made from its field, and the report that comes back.

    `media_param` is the request field that holds media, `media_items` how many of them have been asked for.
    """

    decision: Decision
    items: list[dict[str, Any]] = field(default_factory=list)
    tallies: list[dict[str, Any]] = field(default_factory=list)
    ticket: str = field(default_factory=lambda: uuid.uuid4().hex)
    media_param: str = "messages"
    media_items: int = 0

    def enter(self) -> None:
        """Count the request as being answered."""
        metrics.inflight(1)

    def leave(self) -> None:
        """Count it off, with the visual tokens it was granted."""
        metrics.inflight(-1, -sum(item["kept_tokens"] for item in self.items))

    def usage(self) -> dict[str, Any]:
        """The `usage.pruning` object of the contract."""
        kv = kv_summary(self.tallies) if self.decision.kv is not None else None
        return {"visual": summary(self.items), "kv": kv, "clamped": list(self.decision.clamped)}


TICKETS: WeakValueDictionary[str, Scope] = WeakValueDictionary()
"""Scopes that wait for a report from the scheduler, by the ticket that their budget carries."""

SCOPE: ContextVar[Scope | None] = ContextVar("vllm_prune_scope", default=None)

TENANT: ContextVar[Tenant | None] = ContextVar("vllm_prune_tenant", default=None)
"""Whose request is at hand; None on servers without tenants."""

Settle = Callable[[Any, "int | None", Sequence[int]], None]
SETTLE: ContextVar[Settle | None] = ContextVar("vllm_prune_settle", default=None)
"""Learns a request's true size before it goes to the engine: vLLM's request, kept visual tokens, prompt lengths."""


def summary(items: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Strategy and token counts over the media of a request; None for a request without media."""
    if not items:
        return None
    used = sorted({item["strategy"] for item in items if item["strategy"] != "none"}) or ["none"]
    return {
        "strategy": "+".join(used),
        "input_tokens": sum(item["input_tokens"] for item in items),
        "kept_tokens": sum(item["kept_tokens"] for item in items),
    }


def kv_summary(tallies: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What eviction did to a request: sums over its choices, lengths of its longest prompt; None before it ends."""
    if not tallies:
        return None
    longest = max(tallies, key=lambda tally: tally["prompt_tokens"])
    sums = {key: sum(tally[key] for tally in tallies) for key in ("evicted_tokens", "freed_blocks", "compactions")}
    return {key: longest[key] for key in ("strategy", "prompt_tokens", "kept_tokens")} | sums


def report(tally: Mapping[str, Any]) -> None:
    """Hand a finished request's tally to the scope that waits for it."""
    scope = TICKETS.get(tally["ticket"])
    if scope is not None:
        scope.tallies.append(dict(tally))


class Policy:
    """The operator's configuration applied to requests."""

    def __init__(self, config: PruneConfig) -> None:
        self.config = config

    def decide(self, raw: object = None, preset: str | None = None, preset_param: str = "model") -> Decision:
        """Decide on a request.

        Args:
            raw: the `pruning` value: object, preset name, or None for the server's default.
            preset: preset named in another way (`MODEL@NAME`); parts of `raw` come before its parts.
            preset_param: request field to blame when that preset does not exist.

        Raises:
            BudgetError: a budget that is malformed, unknown, or refused by the limits.
        """
        base = self._preset(preset, preset_param) if preset is not None else PruningField()
        if isinstance(raw, str):
            base, raw = self._preset(raw, "pruning"), None
        asked = parse_pruning(raw) if raw is not None else PruningField()
        visual, kv = self._part("visual", asked, base), self._part("kv", asked, base)
        decision = self._limited(None if visual is None else canonical(visual))
        return decision if kv is None else self._with_kv(decision, kv)

    def _preset(self, name: str, param: str) -> PruningField:
        if name not in self.config.presets:
            known = ", ".join(sorted(self.config.presets)) or "none are configured"
            raise BudgetError(f"unknown preset {name!r}; known: {known}", param)
        return self.config.presets[name]

    def _part(self, name: str, asked: PruningField, base: PruningField) -> Any:
        for source in (asked, base):
            if name in source.model_fields_set:
                return getattr(source, name)
        return getattr(self.config.defaults, name)

    def _with_kv(self, decision: Decision, field: KvField) -> Decision:
        canonical_kv(field)
        clamped: list[dict[str, Any]] = []
        limits = self.config.limits
        spec = canonical_kv(_limit_kv(field, limits.kv, limits.on_limit, clamped))
        for entry in clamped:
            metrics.count_clamped(entry["reason"])
        return replace(decision, kv=spec, clamped=(*decision.clamped, *clamped))

    def _limited(self, spec: VisualSpec | None) -> Decision:
        limits = self.config.limits
        clamped: list[dict[str, Any]] = []
        spec = spec or VisualSpec()
        parts = {m: _limit_part(spec.part(m), limits, m, clamped) for m in MODALITIES}
        total = spec.max_tokens
        if total is not None and limits.min_tokens is not None and total < limits.min_tokens:
            total = _change(limits, clamped, "pruning.visual.max_tokens", total, limits.min_tokens, "min_tokens")
        if total is not None and limits.max_tokens is not None and total > limits.max_tokens:
            total = _change(limits, clamped, "pruning.visual.max_tokens", total, limits.max_tokens, "max_tokens")
        strict = limits.max_tokens is not None and limits.on_limit == "reject"
        limited = VisualSpec(parts["image"], parts["video"], total, limits.max_tokens, strict)
        for entry in clamped:
            metrics.count_clamped(entry["reason"])
        return Decision(None if limited == VisualSpec() else limited, tuple(clamped))


def _limit_part(part: Part | None, limits: Limits, modality: Modality, clamped: list[dict[str, Any]]) -> Part | None:
    if part is None:
        if limits.max_keep is None or limits.max_keep == 1:
            return None
        _change(limits, clamped, "pruning.visual.keep", 1.0, limits.max_keep, "max_keep")
        ratio = VisualField(strategy=DEFAULT_STRATEGY[modality], keep=limits.max_keep)
        return canonical(ratio).part(modality)
    if limits.strategies is not None and part.strategy not in limits.strategies:
        raise BudgetError(
            f"strategy {part.strategy!r} is not allowed here; allowed: {', '.join(limits.strategies)}",
            "pruning.visual.strategy",
        )
    if part.keep is None:
        return part
    keep = float(part.keep)
    if limits.min_keep is not None and keep < limits.min_keep:
        keep = _change(limits, clamped, "pruning.visual.keep", keep, limits.min_keep, "min_keep")
    if limits.max_keep is not None and keep > limits.max_keep:
        keep = _change(limits, clamped, "pruning.visual.keep", keep, limits.max_keep, "max_keep")
    return part if keep == float(part.keep) else replace(part, keep=repr(keep))


def _limit_kv(field: KvField, limits: KvLimits, on_limit: OnLimit, clamped: list[dict[str, Any]]) -> KvField:
    """The field within the operator's bounds."""
    strategy = field.strategy or DEFAULT_KV_STRATEGY
    if limits.strategies is not None and strategy not in limits.strategies:
        allowed = ", ".join(limits.strategies)
        raise BudgetError(f"KV strategy {strategy!r} is not allowed here; allowed: {allowed}", "pruning.kv.strategy")
    for name, low, high in (
        ("keep", limits.min_keep, limits.max_keep),
        ("max_tokens", limits.min_tokens, limits.max_tokens),
    ):
        asked, suffix = getattr(field, name), name.removeprefix("max_")
        if asked is None:
            continue
        if low is not None and asked < low:
            asked = _bound(on_limit, clamped, f"pruning.kv.{name}", asked, low, f"min_{suffix}")
        if high is not None and asked > high:
            asked = _bound(on_limit, clamped, f"pruning.kv.{name}", asked, high, f"max_{suffix}")
        field = field.model_copy(update={name: asked})
    return field


def _change(limits: Limits, clamped: list[dict[str, Any]], param: str, asked: Any, allowed: Any, reason: str) -> Any:
    return _bound(limits.on_limit, clamped, param, asked, allowed, reason)


def _bound(on_limit: OnLimit, clamped: list[dict[str, Any]], param: str, asked: Any, allowed: Any, reason: str) -> Any:
    if on_limit == "reject":
        raise BudgetError(f"{param} {asked} is outside the operator's limit {allowed} ({reason})", param)
    entry = {"param": param, "requested": asked, "applied": allowed, "reason": reason}
    if entry not in clamped:
        clamped.append(entry)
    return allowed


def policy() -> Policy:
    """The policy for the request at hand: its tenant's, or the server's."""
    tenant = TENANT.get()
    return _policy_of(None if tenant is None else tenant.name)


@lru_cache
def _policy_of(tenant: str | None) -> Policy:
    config = configuration()
    if tenant is None:
        return Policy(config)
    return Policy(config.for_tenant(next(one for one in named(config.tenants).values() if one.name == tenant)))


def decide(xargs: Mapping[str, Any] | None) -> Decision:
    """Decision for the request at hand: from its scope, else from `vllm_xargs`, else the default.

    Raises:
        BudgetError: both a `pruning` field and `vllm_xargs.pruning`, or a budget that is refused.
    """
    given = (xargs or {}).get(XARG)
    scope = SCOPE.get()
    if given is None:
        return scope.decision if scope is not None else policy().decide()
    if scope is not None and (scope.decision.spec is not None or scope.decision.kv is not None):
        raise BudgetError("give `pruning` or `vllm_xargs.pruning`, not both", "vllm_xargs.pruning")
    decision = policy().decide(_from_text(given))
    if scope is not None:
        scope.decision = decision
    return decision


def _from_text(given: object) -> object:
    if not isinstance(given, str):
        raise BudgetError("vllm_xargs.pruning is JSON text or a preset's name", "vllm_xargs.pruning")
    if not given.lstrip().startswith("{"):
        return given
    try:
        return json.loads(given)
    except json.JSONDecodeError as error:
        raise BudgetError(f"vllm_xargs.pruning is not JSON: {error}", "vllm_xargs.pruning") from None


def settle(request: Any, items: Sequence[Mapping[str, Any]], prompts: Sequence[int]) -> None:
    """Tell the admission what a request has come to.

    Args:
        request: vLLM's request model.
        items: the processor's reports on its media.
        prompts: tokens of each of its prompts, kept visual tokens included.

    Raises:
        BudgetError: more than this server ever takes at once.
    """
    told = SETTLE.get()
    if told is not None:
        told(request, sum(item["kept_tokens"] for item in items) if items else None, prompts)


def record(items: Sequence[Mapping[str, Any]]) -> None:
    """Count what was done to the media of one request, and leave it in the scope."""
    if not items:
        return
    for item in items:
        metrics.count_visual(item["modality"], item["strategy"], item["input_tokens"], item["kept_tokens"])
    metrics.observe_request(sum(i["input_tokens"] for i in items), sum(i["kept_tokens"] for i in items))
    capped = [item for item in items if item["capped"]]
    if capped:
        metrics.count_clamped("max_tokens")
    scope = SCOPE.get()
    if scope is not None:
        scope.items.extend(dict(item) for item in items)
        metrics.inflight(0, sum(item["kept_tokens"] for item in items))
        if capped and scope.decision.spec is not None:
            applied = scope.decision.spec.limit
            given = sum(item["input_tokens"] for item in items)
            entry = {"param": "pruning.visual", "requested": given, "applied": applied, "reason": "max_tokens"}
            scope.decision = replace(scope.decision, clamped=(*scope.decision.clamped, entry))
