"""Budgets: what a request may ask for, its one canonical form, and how many tokens that keeps.

Pure Python; nothing here sees a tensor or an engine. `PruningField` is the request field as clients
write it. `VisualSpec` is the normalised form that travels with the request and enters every cache key,
so equal budgets always have equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .visual.ops import largest_remainder
from .visual.strategies import create, names, strategy_class
from .visual.strategies.base import Grid, Modality

KEY = "vllm_prune"
"""Key of the wire form among vLLM's multimodal processor kwargs."""

MODALITIES: tuple[Modality, ...] = ("image", "video")
DEFAULT_STRATEGY: dict[Modality, str] = {"image": "divprune", "video": "mc_evs"}


class BudgetError(ValueError):
    """A budget that cannot be honoured. `param` names the request field to change."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Keep = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
MaxTokens = Annotated[int, Field(ge=1, le=1 << 24)]


class VisualPart(_Strict):
    """Budget of one modality: `keep` (ratio of the item's tokens) or `max_tokens` (shared over its items)."""

    strategy: str | None = None
    keep: Keep | None = None
    max_tokens: MaxTokens | None = None
    options: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_budget(self) -> VisualPart:
        if self.keep is not None and self.max_tokens is not None:
            raise ValueError("give one of keep and max_tokens, not both")
        return self


class VisualField(VisualPart):
    """The `pruning.visual` object: a budget for all media, and overrides per modality (null turns one off)."""

    image: VisualPart | None = None
    video: VisualPart | None = None


class KvField(_Strict):
    """The `pruning.kv` object; see the contract for the meaning of each key."""

    strategy: str | None = None
    keep: Keep | None = None
    max_tokens: MaxTokens | None = None
    window: Annotated[int, Field(ge=1, le=1024)] = 8
    buffer: Annotated[int, Field(ge=1, le=1 << 20)] = 128
    options: dict[str, Any] | None = None


class PruningField(_Strict):
    """The `pruning` request field. A part that is absent takes the default, a part that is null is off."""

    visual: VisualField | None = None
    kv: KvField | None = None


@dataclass(frozen=True)
class Part:
    """Canonical budget of one modality. With neither `keep` nor `max_tokens` it draws on the shared tokens."""

    strategy: str
    options: str = "{}"
    keep: str | None = None
    max_tokens: int | None = None

    def ratio_count(self, tokens: int) -> int:
        """K = max(1, floor(M * keep)), computed in decimals so that 0.29 of 100 is 29."""
        assert self.keep is not None
        return max(1, int(Decimal(self.keep) * tokens))


@dataclass(frozen=True)
class VisualSpec:
    """Canonical visual budget of a request.

    Attributes:
        image, video: budget of that modality, None where it is not pruned.
        max_tokens: tokens shared by the parts that name no budget of their own.
        limit: operator's cap on the visual tokens of one request, None where there is none.
        strict: whether a request over the cap is refused instead of pruned down to it.
    """

    image: Part | None = None
    video: Part | None = None
    max_tokens: int | None = None
    limit: int | None = None
    strict: bool = False

    def part(self, modality: Modality) -> Part | None:
        """Budget of `modality`."""
        return self.image if modality == "image" else self.video

    def wire(self) -> dict[str, Any]:
        """JSON-able form with a fixed key order."""
        return asdict(self)

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> VisualSpec:
        """Inverse of `wire`. Accepts a `pruning.visual` object as well, for offline use.

        Raises:
            BudgetError: neither form.
        """
        if set(wire) == {"image", "video", "max_tokens", "limit", "strict"}:
            parts = {m: Part(**wire[m]) if wire[m] else None for m in MODALITIES}
            return cls(parts["image"], parts["video"], wire["max_tokens"], wire["limit"], wire["strict"])
        return canonical(parse_visual(wire))


def parse_pruning(raw: object) -> PruningField:
    """Validate a `pruning` object.

    Raises:
        BudgetError: with the offending field in `param`.
    """
    return _validate(PruningField, raw, "pruning")


def parse_visual(raw: object, param: str = "pruning.visual") -> VisualField:
    """Validate a `pruning.visual` object. Raises `BudgetError`."""
    return _validate(VisualField, raw, param)


def _validate(model: type[Any], raw: object, param: str) -> Any:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # A rule over several fields is reported at their parent; `keep` is the field to change.
        field = ("keep",) if first["type"] == "value_error" else ()
        location = ".".join([param, *(str(part) for part in (*first["loc"], *field))])
        raise BudgetError(f"{location}: {first['msg']}", location) from None


def canonical(field: VisualField, defaults: Mapping[str, str] | None = None) -> VisualSpec:
    """Normalise a validated field: strategies named, options filled in, numbers in one spelling.

    Args:
        field: what the client asked for.
        defaults: strategy per modality where the field names none.

    Raises:
        BudgetError: no budget, an unknown strategy, options the strategy refuses.
    """
    fallback: dict[str, str] = dict(DEFAULT_STRATEGY.items()) | dict(defaults or {})
    parts: dict[str, Part | None] = {}
    for modality in MODALITIES:
        own = modality in field.model_fields_set
        override: VisualPart | None = getattr(field, modality) if own else None
        if own and override is None:
            parts[modality] = None
        else:
            parts[modality] = _part(field, override, modality, fallback[modality])
    shared = any(p and p.keep is None and p.max_tokens is None for p in parts.values())
    return VisualSpec(parts["image"], parts["video"], field.max_tokens if shared else None)


def _part(field: VisualField, override: VisualPart | None, modality: Modality, fallback: str) -> Part | None:
    source = override or field
    param = f"pruning.visual.{modality}" if override else "pruning.visual"
    given = source if source.keep is not None or source.max_tokens is not None else field
    name = source.strategy or field.strategy or fallback
    if name not in names():
        raise BudgetError(f"unknown strategy {name!r}; known: {', '.join(names())}", f"{param}.strategy")
    if name == "none" and given.max_tokens is None and given.keep in (None, 1.0):
        return None
    if name == "none":
        raise BudgetError("strategy 'none' keeps every token; name another one or drop the budget", f"{param}.strategy")
    if given.keep is None and given.max_tokens is None:
        only_other = override is None and (field.image or field.video or field.model_fields_set & {"image", "video"})
        if only_other:
            return None
        raise BudgetError("give one of keep and max_tokens", f"{param}.keep")
    options = source.options if source.options is not None or override is None else field.options
    text = _options(name, options or {}, param)
    if given.keep is not None:
        return (
            None
            if given.keep == 1
            else Part(name, text, keep=format(Decimal(repr(float(given.keep))).normalize(), "f"))
        )
    return Part(name, text, max_tokens=given.max_tokens if given is override else None)


def _options(name: str, options: Mapping[str, Any], param: str) -> str:
    try:
        filled = create(name, options).options.model_dump(mode="json")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        location = ".".join([param, "options", *(str(part) for part in first["loc"])])
        raise BudgetError(f"{location}: {first['msg']} (strategy {name!r})", location) from None
    return json.dumps(filled, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class ItemBudget:
    """What one media item has been granted: a ratio, or an absolute count; `capped` if the operator's cap decided."""

    strategy: str
    options: str
    keep: str | None
    count: int | None
    capped: bool = False

    def key(self) -> str:
        """Cache-key suffix: equal for equal budgets of the item, different otherwise."""
        return f"{self.strategy}{self.options}{'r' + self.keep if self.keep else self.count}"


def plan(grid: Grid, budget: ItemBudget) -> int:
    """K, the tokens kept of an item: a pure function of its grid and its budget, 1 <= K <= M."""
    if budget.keep is not None:
        return Part(budget.strategy, keep=budget.keep).ratio_count(grid.tokens)
    assert budget.count is not None
    return max(1, min(budget.count, grid.tokens))


def allocate(spec: VisualSpec, sizes: Mapping[Modality, Sequence[int]]) -> dict[Modality, list[ItemBudget | None]]:
    """Grant every item its budget; `max_tokens` is shared by size, largest remainder.

    Args:
        spec: canonical budget of the request.
        sizes: tokens of each item before pruning, per modality, in prompt order of that modality.

    Returns:
        For each modality one entry per item, None where nothing is pruned.

    Raises:
        BudgetError: fewer tokens than items, or a strategy that does not handle the modality.
    """
    grants: dict[Modality, list[ItemBudget | None]] = {}
    shared: list[tuple[Modality, int]] = []
    for modality, items in sizes.items():
        part = spec.part(modality)
        grants[modality] = [None] * len(items)
        if part is None or not items:
            continue
        _check_modality(part.strategy, modality)
        if part.keep is not None:
            grants[modality] = [ItemBudget(part.strategy, part.options, part.keep, None)] * len(items)
        elif part.max_tokens is not None:
            _share(grants, spec, [(modality, i) for i in range(len(items))], sizes, part.max_tokens)
        else:
            shared += [(modality, i) for i in range(len(items))]
    if shared:
        assert spec.max_tokens is not None
        _share(grants, spec, shared, sizes, spec.max_tokens)
    return _capped(grants, spec, sizes)


def _check_modality(strategy: str, modality: Modality) -> None:
    if modality not in strategy_class(strategy).modalities:
        raise BudgetError(
            f"strategy {strategy!r} does not prune a {modality}; name another one in pruning.visual.{modality}, "
            f"or turn that modality off with null",
            "pruning.visual.strategy",
        )


def _share(
    grants: dict[Modality, list[ItemBudget | None]],
    spec: VisualSpec,
    places: Sequence[tuple[Modality, int]],
    sizes: Mapping[Modality, Sequence[int]],
    total: int,
    capped: bool = False,
) -> None:

    weights = [sizes[m][i] for m, i in places]
    if total < len(places):
        raise BudgetError(
            f"max_tokens {total} is less than one token for each of {len(places)} items", "pruning.visual.max_tokens"
        )
    counts = largest_remainder(min(total, sum(weights)), weights, weights, 1)
    for (modality, i), count in zip(places, counts, strict=True):
        part = spec.part(modality) or Part(DEFAULT_STRATEGY[modality], _options(DEFAULT_STRATEGY[modality], {}, ""))
        grants[modality][i] = (
            None if count >= sizes[modality][i] else ItemBudget(part.strategy, part.options, None, count, capped)
        )


def _capped(
    grants: dict[Modality, list[ItemBudget | None]], spec: VisualSpec, sizes: Mapping[Modality, Sequence[int]]
) -> dict[Modality, list[ItemBudget | None]]:
    """Apply the operator's cap: over it, everything is shared out anew within the cap."""
    if spec.limit is None:
        return grants
    kept = sum(
        size if grant is None else plan(Grid(1, 1, size), grant)
        for modality in sizes
        for size, grant in zip(sizes[modality], grants[modality], strict=True)
    )
    if kept > spec.limit and spec.strict:
        raise BudgetError(f"{kept} visual tokens are over the operator's limit of {spec.limit}", "pruning.visual")
    if kept > spec.limit:
        everything = [(m, i) for m in sizes for i in range(len(sizes[m]))]
        _share(grants, spec, everything, sizes, spec.limit, capped=True)
    return grants


OnLimit = Literal["clamp", "reject"]
