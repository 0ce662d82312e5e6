"""Section `default_strategies`: what budgets get that name no strategy."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..budget.errors import first_problem
from ..budget.fields import DEFAULT_CHOICES, DEFAULT_KV_CHOICES, Choice, Choices
from ..catalogue import KV, VISUAL
from .section import Section

Part = Literal["image", "video", "kv"]
BUILT_IN: dict[Part, Choices] = {
    "image": DEFAULT_CHOICES["image"],
    "video": DEFAULT_CHOICES["video"],
    "kv": DEFAULT_KV_CHOICES,
}


class DefaultStrategy(BaseModel):
    """A strategy by its name, and options that differ from its defaults. A request's own options come before these."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    strategy: str
    options: dict[str, Any] = Field(default_factory=dict)


class DefaultStrategies(Section):
    """Strategies of budgets that name none, in place of the server's own choice.

    Attributes:
        image: for images, as `{strategy: NAME, options: {...}}`; options that a request gives come before these.
        video: for videos, likewise.
        kv: for the cache, likewise.
    """

    image: DefaultStrategy | None = None
    video: DefaultStrategy | None = None
    kv: DefaultStrategy | None = None

    @model_validator(mode="after")
    def _usable(self) -> DefaultStrategies:
        for part in BUILT_IN:
            if (chosen := self._chosen(part)) is not None:
                _check(part, chosen)
        return self

    def _chosen(self, part: Part) -> DefaultStrategy | None:
        chosen: DefaultStrategy | None = getattr(self, part)
        return chosen

    def names(self, *parts: Part) -> set[str]:
        """Strategies that the operator has chosen for some parts."""
        return {chosen.strategy for part in parts if (chosen := self._chosen(part)) is not None}

    def of(self, part: Part) -> Choices:
        """The operator's choice where there is one, else the server's."""
        chosen = self._chosen(part)
        return BUILT_IN[part] if chosen is None else (Choice(chosen.strategy, chosen.options),)


def _check(part: Part, chosen: DefaultStrategy) -> None:
    catalogue: Any = KV if part == "kv" else VISUAL
    if chosen.strategy not in catalogue.names() or chosen.strategy == "none":
        known = ", ".join(name for name in catalogue.names() if name != "none")
        raise ValueError(f"{part}: unknown strategy {chosen.strategy!r}; known: {known}")
    if part != "kv" and part not in VISUAL.strategy_class(chosen.strategy).modalities:
        raise ValueError(f"{part}: strategy {chosen.strategy!r} does not prune {part}s")
    try:
        catalogue.create(chosen.strategy, chosen.options)
    except ValidationError as error:
        first = first_problem(error)
        name = ".".join(str(step) for step in first["loc"])
        raise ValueError(f"{part}: options.{name}: {first['msg']} (strategy {chosen.strategy!r})") from None
