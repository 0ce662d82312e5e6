"""Section `limits`: what requests may ask for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ..budget.fields import Buffer, Choice, Choices, Keep, MaxTokens, OnLimit, Window
from ..catalogue import KV, VISUAL
from ..grid import Modality
from .section import Section
from .worker_facts import MAX_WINDOW

Names = Annotated[tuple[str, ...], Field(min_length=1)]


def _check(limits: KvLimits | Limits, known: tuple[str, ...]) -> None:
    unknown = set(limits.strategies or ()) - set(known)
    if unknown:
        raise ValueError(f"unknown strategies {sorted(unknown)}; known: {', '.join(known)}")
    if limits.min_keep and limits.max_keep and limits.min_keep > limits.max_keep:
        raise ValueError("min_keep is above max_keep")
    if limits.min_tokens and limits.max_tokens and limits.min_tokens > limits.max_tokens:
        raise ValueError("min_tokens is above max_tokens")


def _allowed(preferred: Choices, names: tuple[str, ...] | None) -> Choices:
    return tuple(choice for choice in preferred if names is None or choice.strategy in names)


class KvLimits(Section):
    """What requests may ask for in `pruning.kv`; `on_limit` is that of `limits`.

    Attributes:
        min_keep: lowest `keep`.
        max_keep: highest `keep`.
        min_tokens: lowest `max_tokens`.
        max_tokens: highest `max_tokens`.
        strategies: allowed strategies, all when absent. A request that names none gets the server's default where it
            is allowed, else the first of these.
        max_window: highest `window`. The workers keep the queries of so many rows per request, in every layer.
        min_buffer: lowest `buffer`. After that many decoded tokens the request's whole cache is scored again.
    """

    min_keep: Keep | None = None
    max_keep: Keep | None = None
    min_tokens: MaxTokens | None = None
    max_tokens: MaxTokens | None = None
    strategies: Names | None = None
    max_window: Window = MAX_WINDOW
    min_buffer: Buffer = 16

    @model_validator(mode="after")
    def _known(self) -> KvLimits:
        _check(self, KV.names())
        return self

    def choices(self, preferred: Choices) -> Choices:
        """Strategies of a request that names none: the preferred ones that are allowed, else the first that is."""
        return _allowed(preferred, self.strategies) or tuple(Choice(name) for name in (self.strategies or ())[:1])


class Limits(Section):
    """What requests may ask for.

    Attributes:
        min_keep: lowest `keep`.
        max_keep: highest `keep`; below 1 it also bounds requests without a budget.
        min_tokens: lowest `max_tokens`.
        max_tokens: most visual tokens that one request may hand to the language model.
        strategies: allowed strategies, all when absent. A request that names none gets the server's default where it
            is allowed, else the first of these that prunes the modality.
        kv: bounds of `pruning.kv`.
        on_limit: "clamp" changes the budget and says so in the answer, "reject" refuses with 400.
    """

    min_keep: Keep | None = None
    max_keep: Keep | None = None
    min_tokens: MaxTokens | None = None
    max_tokens: MaxTokens | None = None
    strategies: Names | None = None
    kv: KvLimits = KvLimits()
    on_limit: OnLimit = "clamp"

    @model_validator(mode="after")
    def _known(self) -> Limits:
        _check(self, VISUAL.names())
        bounds = self.max_tokens is not None or (self.max_keep is not None and self.max_keep < 1)
        if bounds and self.strategies is not None and set(self.strategies) == {"none"}:
            raise ValueError("max_keep below 1 and max_tokens need a strategy that prunes; strategies has none")
        return self

    def choices(self, modality: Modality, preferred: Choices) -> Choices:
        """Strategies of a request that names none: the preferred ones that are allowed, else the first that is.

        Where no allowed strategy prunes the modality it is the first allowed one, and items of it are refused.
        """
        if choices := _allowed(preferred, self.strategies):
            return choices
        pruning = [name for name in self.strategies or () if name != "none"]
        suited = (name for name in pruning if modality in VISUAL.strategy_class(name).modalities)
        return (Choice(next(suited, pruning[0] if pruning else "none")),)

    def overlaid(self, other: Limits) -> Limits:
        """These limits with the fields that `other` sets in their place."""
        server, overrides = self.model_dump(), other.model_dump(exclude_unset=True)
        return Limits.model_validate({**server, **overrides, "kv": {**server["kv"], **overrides.get("kv", {})}})
