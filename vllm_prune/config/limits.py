"""Section `limits`: what requests may ask for."""

from __future__ import annotations

from pydantic import model_validator

from ..budget.fields import Keep, MaxTokens, OnLimit
from ..catalogue import KV, VISUAL
from .section import Section


def _check_names(given: tuple[str, ...] | None, known: tuple[str, ...]) -> None:
    unknown = set(given or ()) - set(known)
    if unknown:
        raise ValueError(f"unknown strategies {sorted(unknown)}; known: {', '.join(known)}")


class KvLimits(Section):
    """What requests may ask for in `pruning.kv`; `on_limit` is that of `limits`.

    Attributes:
        min_keep: lowest `keep`.
        max_keep: highest `keep`.
        min_tokens: lowest `max_tokens`.
        max_tokens: highest `max_tokens`.
        strategies: allowed strategies, all when absent.
    """

    min_keep: Keep | None = None
    max_keep: Keep | None = None
    min_tokens: MaxTokens | None = None
    max_tokens: MaxTokens | None = None
    strategies: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _known(self) -> KvLimits:
        _check_names(self.strategies, KV.names())
        if self.min_keep and self.max_keep and self.min_keep > self.max_keep:
            raise ValueError("min_keep is above max_keep")
        return self


class Limits(Section):
    """What requests may ask for.

    Attributes:
        min_keep: lowest `keep`.
        max_keep: highest `keep`; below 1 it also bounds requests without a budget.
        min_tokens: lowest `max_tokens`.
        max_tokens: most visual tokens that one request may hand to the language model.
        strategies: allowed strategies, all when absent.
        kv: bounds of `pruning.kv`.
        on_limit: "clamp" changes the budget and says so in the answer, "reject" refuses with 400.
    """

    min_keep: Keep | None = None
    max_keep: Keep | None = None
    min_tokens: MaxTokens | None = None
    max_tokens: MaxTokens | None = None
    strategies: tuple[str, ...] | None = None
    kv: KvLimits = KvLimits()
    on_limit: OnLimit = "clamp"

    @model_validator(mode="after")
    def _known(self) -> Limits:
        _check_names(self.strategies, VISUAL.names())
        if self.min_keep and self.max_keep and self.min_keep > self.max_keep:
            raise ValueError("min_keep is above max_keep")
        return self

    def overlaid(self, other: Limits) -> Limits:
        """These limits with the fields that `other` sets in their place."""
        own, given = self.model_dump(), other.model_dump(exclude_unset=True)
        return Limits.model_validate({**own, **given, "kv": {**own["kv"], **given.get("kv", {})}})
