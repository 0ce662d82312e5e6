"""The operator's configuration: defaults, limits and presets, from one YAML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from .budget import (
    BudgetError,
    Keep,
    KvField,
    MaxTokens,
    OnLimit,
    PruningField,
    VisualField,
    canonical,
    canonical_kv,
)
from .kv.strategies import names as kv_names
from .settings import Section
from .visual.strategies import names

ENV = "VLLM_PRUNE_CONFIG"


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file and the line."""


class Defaults(Section):
    """Budgets of requests that name none."""

    visual: VisualField | None = None
    kv: KvField | None = None


class KvLimits(Section):
    """What requests may ask for in `pruning.kv`; `on_limit` is that of `limits`.

    Attributes:
        min_keep, max_keep: bounds of `keep`.
        min_tokens, max_tokens: bounds of `max_tokens`.
        strategies: allowed strategies, all when absent.
    """

    min_keep: Keep | None = None
    max_keep: Keep | None = None
    min_tokens: MaxTokens | None = None
    max_tokens: MaxTokens | None = None
    strategies: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _known(self) -> KvLimits:
        _check_names(self.strategies, kv_names())
        if self.min_keep and self.max_keep and self.min_keep > self.max_keep:
            raise ValueError("min_keep is above max_keep")
        return self


def _check_names(given: tuple[str, ...] | None, known: tuple[str, ...]) -> None:
    unknown = set(given or ()) - set(known)
    if unknown:
        raise ValueError(f"unknown strategies {sorted(unknown)}; known: {', '.join(known)}")


class Limits(Section):
    """What requests may ask for.

    Attributes:
        min_keep, max_keep: bounds of `keep`; `max_keep` below 1 also bounds requests without a budget.
        min_tokens: lower bound of `max_tokens`.
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
        _check_names(self.strategies, names())
        if self.min_keep and self.max_keep and self.min_keep > self.max_keep:
            raise ValueError("min_keep is above max_keep")
        return self


PresetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class PruneConfig(Section):
    """The whole file."""

    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    presets: dict[PresetName, PruningField] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _usable(self) -> PruneConfig:
        fields: dict[str, Defaults | PruningField] = {"defaults": self.defaults}
        fields |= {f"presets.{name}": preset for name, preset in self.presets.items()}
        for where, field in fields.items():
            try:
                if field.visual is not None:
                    canonical(field.visual)
                if field.kv is not None:
                    canonical_kv(field.kv)
            except BudgetError as error:
                raise ValueError(f"{where}: {error}") from None
        return self


def load(path: str | os.PathLike[str] | None = None) -> PruneConfig:
    """Read the configuration from `path`, or from the file that `VLLM_PRUNE_CONFIG` names, or the defaults.

    Raises:
        ConfigError: unreadable file, YAML error, unknown key or wrong value, with its line.
    """
    source = path or os.environ.get(ENV)
    if not source:
        return PruneConfig()
    try:
        text = Path(source).read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text) or {}
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {source}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {error}") from None
    try:
        return PruneConfig.model_validate(_plain(raw))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{source}:{_line(tree, first['loc'])}: {where or 'file'}: {first['msg']}") from None


def _plain(raw: Any) -> Any:
    """Lists become tuples where the strict models expect immutable values."""
    if isinstance(raw, dict):
        return {key: _plain(value) for key, value in raw.items()}
    return tuple(_plain(item) for item in raw) if isinstance(raw, list) else raw


def _line(node: Any, location: tuple[int | str, ...]) -> int:
    """Line of the deepest key on the path of an error, counted from 1."""
    line = node.start_mark.line + 1 if node is not None else 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in node.value}
            if part not in pairs:
                break
            key, node = pairs[str(part)]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
