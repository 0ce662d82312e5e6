"""The `pruning` request field as clients write it, and its validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from ..grid import Modality
from .errors import BudgetError, first_problem


@dataclass(frozen=True)
class Choice:
    """A strategy for budgets that name none.

    Attributes:
        strategy: catalogue name.
        options: what is not the strategy's default; a request's own options come before them.
    """

    strategy: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


Choices = Sequence[Choice]
"""In order: a budget without a strategy gets the first that takes its options and can run on the served model."""

DEFAULT_CHOICES: dict[Modality, Choices] = {
    "image": (Choice("vidcom2"), Choice("divprune")),
    "video": (Choice("divprune", {"where": "auto"}),),
}
"""For visual budgets that name no strategy, where the operator allows them and has not chosen another one."""

DEFAULT_KV_CHOICES: Choices = (Choice("gui_kv"), Choice("snapkv"))
"""The same for KV budgets."""

DEFAULT_STRATEGY: dict[Modality, str] = {modality: choices[0].strategy for modality, choices in DEFAULT_CHOICES.items()}
DEFAULT_KV_STRATEGY = DEFAULT_KV_CHOICES[0].strategy
OnLimit = Literal["clamp", "reject"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


AUTO = "auto"
"""In the place of a ratio: as many visual tokens as a strategy finds that it needs, all of them at most."""


def is_auto(keep: object) -> bool:
    """Whether a budget leaves the count to its strategy."""
    return isinstance(keep, str) and keep == AUTO


def _ratio_or_auto(value: Any, ratio: ValidatorFunctionWrapHandler) -> Any:
    return value if is_auto(value) else ratio(value)


Keep = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
KEEP_SCHEMA = {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {"const": AUTO}, {"type": "null"}]}
VisualKeep = Annotated[
    # A union would put the names of its members into the paths of errors.
    Keep | None,
    WrapValidator(_ratio_or_auto),
    PlainSerializer(lambda keep: keep),
    WithJsonSchema(KEEP_SCHEMA),
]
MAX_TOKENS = 1 << 24
MAX_WINDOW = 1024
MAX_BUFFER = 1 << 20
MaxTokens = Annotated[int, Field(strict=True, ge=1, le=MAX_TOKENS)]
Window = Annotated[int, Field(strict=True, ge=1, le=MAX_WINDOW)]
Buffer = Annotated[int, Field(strict=True, ge=1, le=MAX_BUFFER)]


class VisualPart(_Strict):
    """Budget of one modality: `keep` (ratio of the item's tokens) or `max_tokens` (shared over its items).

    `keep` may be `AUTO` for strategies that have a count of their own.
    """

    strategy: str | None = None
    keep: VisualKeep = None
    max_tokens: MaxTokens | None = None
    options: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_budget(self) -> VisualPart:
        if self.keep is not None and self.max_tokens is not None:
            raise ValueError("give one of keep and max_tokens, not both")
        return self


class VisualField(VisualPart):
    """The `pruning.visual` object: a budget for all media, and overrides per modality (null turns one off).

    `return_kept` has the answer name the kept visual tokens of each item; it is no part of the budget.
    """

    image: VisualPart | None = None
    video: VisualPart | None = None
    return_kept: bool = False


class KvField(_Strict):
    """The `pruning.kv` object; see the contract for the meaning of each key."""

    strategy: str | None = None
    keep: Keep | None = None
    max_tokens: MaxTokens | None = None
    window: Window = 8
    buffer: Buffer = 128
    options: dict[str, Any] | None = None


class PruningField(_Strict):
    """The `pruning` request field. A part that is absent takes the default, a part that is null is off."""

    visual: VisualField | None = None
    kv: KvField | None = None


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
        first = first_problem(error)
        # A rule over several fields is reported at their parent; `keep` is the field to change.
        field = ("keep",) if first["type"] == "value_error" else ()
        location = ".".join([param, *(str(part) for part in (*first["loc"], *field))])
        raise BudgetError(f"{location}: {first['msg']}", location) from None
