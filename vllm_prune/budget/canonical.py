"""Budgets: what a request may ask for, and its one canonical form.

Pure Python; nothing here sees a tensor or an engine. `PruningField` is the request field as clients
write it. `VisualSpec` is the normalised form that travels with the request and enters every cache key,
so equal budgets always have equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from ..catalogue import KV, VISUAL
from ..grid import MODALITIES, Modality
from .errors import BudgetError, first_problem
from .fields import (
    AUTO,
    DEFAULT_CHOICES,
    DEFAULT_KV_CHOICES,
    Choice,
    Choices,
    KvField,
    VisualField,
    VisualPart,
    is_auto,
    parse_visual,
)
from .kv import KvSpec

KEY = "vllm_prune"
"""Key of the wire form among vLLM's multimodal processor kwargs."""


@dataclass(frozen=True)
class Part:
    """Canonical budget of one modality. With neither `keep` nor `max_tokens` it draws on the shared tokens."""

    strategy: str
    options: str = "{}"
    keep: str | None = None
    max_tokens: int | None = None

    def ratio_count(self, tokens: int) -> int:
        """K = max(1, floor(M * keep)), in decimals: 0.29 of 100 is 29. Where the strategy counts it is M, the most."""
        assert self.keep is not None
        if is_auto(self.keep):
            return tokens
        return max(1, int(Decimal(self.keep) * tokens))

    def with_options(self, **changes: Any) -> Part:
        """The same budget with some options changed."""
        return replace(self, options=_text({**json.loads(self.options), **changes}))


@dataclass(frozen=True)
class VisualSpec:
    """Canonical visual budget of a request.

    Attributes:
        image, video: budget of that modality, None where it is not pruned.
        max_tokens: tokens shared by the parts that name no budget of their own.
        limit: operator's cap on the visual tokens of one request, None where there is none.
        strict: whether a request over the cap is refused instead of pruned down to it.
        capped_image, capped_video: with which strategy the cap prunes a modality that has no budget; no number.
    """

    image: Part | None = None
    video: Part | None = None
    max_tokens: int | None = None
    limit: int | None = None
    strict: bool = False
    capped_image: Part | None = None
    capped_video: Part | None = None

    @property
    def counts(self) -> bool:
        """Whether tokens are counted over the request, so that every item's size matters to the others."""
        parts = [part.max_tokens for part in (self.image, self.video) if part is not None]
        return any(n is not None for n in (*parts, self.max_tokens, self.limit))

    def part(self, modality: Modality) -> Part | None:
        """Budget of `modality`."""
        return self.image if modality == "image" else self.video

    def part_of_cap(self, modality: Modality) -> Part:
        """Budget of `modality`, or what the operator's cap prunes it with, which names no number."""
        part = self.part(modality) or (self.capped_image if modality == "image" else self.capped_video)
        assert part is not None, "a spec with a limit says what the cap prunes with"
        return part

    def mapped(self, change: Callable[[Part], Part]) -> VisualSpec:
        """The same with each part changed, those of the cap as well."""
        changed: dict[str, Any] = {n: change(part) for n in _PARTS if (part := getattr(self, n)) is not None}
        return replace(self, **changed)

    def wire(self) -> dict[str, Any]:
        """JSON-able form with a fixed key order."""
        return asdict(self)

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> VisualSpec:
        """Inverse of `wire`. Accepts a `pruning.visual` object as well, for offline use.

        Raises:
            BudgetError: neither form.
        """
        if set(wire) == {field.name for field in fields(cls)}:
            values: dict[str, Any] = {n: Part(**v) if n in _PARTS and v else v for n, v in wire.items()}
            return cls(**values)
        field = parse_visual(wire)
        if field.return_kept:
            raise BudgetError("kept tokens are returned by the server alone", "pruning.visual.return_kept")
        return canonical(field)


_PARTS = ("image", "video", "capped_image", "capped_video")


def canonical(field: VisualField, choices: Mapping[Modality, Choices] = DEFAULT_CHOICES) -> VisualSpec:
    """Normalise a validated field: strategies named, options filled in, numbers in one spelling.

    Args:
        field: what the client asked for.
        choices: strategies per modality where the field names none; the first that takes its options is it.

    Raises:
        BudgetError: no budget, an unknown strategy, options the strategy refuses.
    """
    parts: dict[str, Part | None] = {}
    for modality in MODALITIES:
        override: VisualPart | None = getattr(field, modality)
        if override is None and modality in field.model_fields_set:
            parts[modality] = None
        else:
            parts[modality] = _part(field, override, modality, choices[modality])
    shared = any(p and p.keep is None and p.max_tokens is None for p in parts.values())
    return VisualSpec(parts["image"], parts["video"], field.max_tokens if shared else None)


def _part(field: VisualField, override: VisualPart | None, modality: Modality, choices: Choices) -> Part | None:
    source = override or field
    param = f"pruning.visual.{modality}" if override else "pruning.visual"
    budget = source if source.keep is not None or source.max_tokens is not None else field
    named = next((n for n in (source.strategy, field.strategy) if n is not None), None)
    name = choices[0].strategy if named is None else named
    if name not in VISUAL.names():
        raise BudgetError(f"unknown strategy {name!r}; known: {', '.join(VISUAL.names())}", f"{param}.strategy")
    if name == "none" and budget.max_tokens is None and budget.keep in (None, 1.0):
        return None
    if name == "none":
        raise BudgetError("strategy 'none' keeps every token; name another one or drop the budget", f"{param}.strategy")
    if budget.keep is None and budget.max_tokens is None:
        only_other = override is None and (field.image or field.video or field.model_fields_set & {"image", "video"})
        if only_other:
            return None
        raise BudgetError("give one of keep and max_tokens", f"{param}.keep")
    if is_auto(budget.keep) and not VISUAL.strategy_class(name).automatic:
        raise BudgetError(
            f"strategy {name!r} has no count of its own; give keep as a number, or name another strategy",
            f"{param}.keep",
        )
    options = source.options if source.options is not None or override is None else field.options
    taken = choices if named is None else (Choice(named),)
    name, text = next(fitting(taken, options or {}, param))
    if budget.keep is not None:
        return None if budget.keep == 1 else Part(name, text, keep=_decimal(budget.keep))
    return Part(name, text, max_tokens=budget.max_tokens if budget is override else None)


def canonical_kv(field: KvField, choices: Choices = DEFAULT_KV_CHOICES) -> KvSpec | None:
    """Normalise a validated `pruning.kv` object; None where it evicts nothing. See `kv_specs`."""
    return next(iter(kv_specs(field, choices)), None)


def kv_specs(field: KvField, choices: Choices = DEFAULT_KV_CHOICES) -> tuple[KvSpec, ...]:
    """A validated `pruning.kv` object in canonical form, once for each strategy that it may come to.

    Args:
        field: what the client asked for.
        choices: strategies where the field names none; those that take its options are used.

    Returns:
        The first is to be taken where it can run on the served model, else the next. None where nothing is evicted.

    Raises:
        BudgetError: both budgets or neither, an unknown strategy, options the strategy refuses, a buffer for a strategy
            that compacts once.
    """
    name = choices[0].strategy if field.strategy is None else field.strategy
    if name not in ("none", *KV.names()):
        raise BudgetError(f"unknown KV strategy {name!r}; known: {', '.join(KV.names())}", "pruning.kv.strategy")
    if (field.keep is None) == (field.max_tokens is None) and name != "none":
        raise BudgetError("give one of keep and max_tokens", "pruning.kv.keep")
    if name == "none" and (field.max_tokens is not None or field.keep not in (None, 1)):
        raise BudgetError("strategy 'none' keeps every row; name another one or drop the budget", "pruning.kv.strategy")
    if name == "none" or field.keep == 1:
        return ()
    keep = None if field.keep is None else _decimal(field.keep)
    named = field.model_fields_set
    size = KvSpec(
        name,
        keep=keep,
        max_tokens=field.max_tokens,
        window=field.window,
        buffer=field.buffer,
        window_named="window" in named,
        buffer_named="buffer" in named,
    )
    taken = choices if field.strategy is None else (Choice(name),)
    strategies = tuple(fitting(taken, field.options or {}, "pruning.kv", KV.create))
    once = next((name for name, _ in strategies if KV.strategy_class(name).once), None)
    if once and size.buffer_named:
        text = f"strategy {once!r} compacts the cache once, after prefill, and keeps what is decoded; leave buffer out"
        raise BudgetError(text, "pruning.kv.buffer")
    return tuple(replace(size, strategy=strategy, options=options) for strategy, options in strategies)


def fitting(
    choices: Choices, options: Mapping[str, Any], param: str, make: Callable[..., Any] = VISUAL.create
) -> Iterator[tuple[str, str]]:
    """The choices that take a request's options: the strategy, and all its options as canonical JSON.

    Raises:
        BudgetError: none does; says what the last one refuses.
    """
    refusals: list[BudgetError] = []
    for choice in choices:
        try:
            text = options_of(choice.strategy, {**choice.options, **options}, param, make)
        except BudgetError as error:
            refusals.append(error)
        else:
            yield choice.strategy, text
    if len(refusals) == len(choices):
        raise refusals[-1]


def _decimal(ratio: float) -> str:
    if is_auto(ratio):
        return AUTO
    return format(Decimal(repr(float(ratio))).normalize(), "f")


def options_of(name: str, options: Mapping[str, Any], param: str, make: Callable[..., Any] = VISUAL.create) -> str:
    """Validated options of a strategy, defaults filled in, as canonical JSON. Raises `BudgetError`."""
    try:
        filled = make(name, options).options.model_dump(mode="json")
    except ValidationError as error:
        first = first_problem(error)
        location = ".".join([param, "options", *(str(part) for part in first["loc"])])
        raise BudgetError(f"{location}: {first['msg']} (strategy {name!r})", location) from None
    return _text(filled)


def _text(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, separators=(",", ":"))
