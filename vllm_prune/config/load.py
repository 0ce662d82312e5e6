"""The operator's configuration: defaults, limits and presets, from one YAML file."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from ..budget.canonical import canonical, canonical_kv
from ..budget.errors import BudgetError, first_problem
from ..budget.fields import Choices, KvField, PruningField, VisualField
from ..grid import MODALITIES, Modality
from .admission import Admission
from .default_strategies import DefaultStrategies
from .feature_cache import FeatureCacheSize
from .kv import Kv
from .limits import Limits
from .logging import Logging
from .media import Media
from .playground import Playground
from .scorers import Stts, TrainedLayers, VisionSelectorWeights
from .section import Section
from .tenants import ENV as TENANTS_ENV
from .tenants import Tenant, Tenants, from_environment, named

ENV = "VLLM_PRUNE_CONFIG"


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file and the line."""


class Defaults(Section):
    """Budgets of requests that name none; a part that is absent is off.

    Attributes:
        visual: a `pruning.visual` object.
        kv: a `pruning.kv` object.
    """

    visual: VisualField | None = None
    kv: KvField | None = None


def _check_budget(
    where: str, field: Defaults | PruningField, config: PruneConfig
) -> list[tuple[str, str, tuple[str, ...] | None]]:
    """The strategies that a budget comes to, each with its part and the names that the limits allow there.

    Raises:
        ValueError: a budget that could not be honoured; `where` says which.
    """
    try:
        visual = None if field.visual is None else canonical(field.visual, config.visual_choices())
        kv = None if field.kv is None else canonical_kv(field.kv, config.kv_choices())
    except BudgetError as error:
        raise ValueError(f"{where}: {error}") from None
    limits = config.limits
    parts = [] if visual is None else [part for part in (visual.image, visual.video) if part is not None]
    strategies = [("visual", part.strategy, limits.strategies) for part in parts]
    return strategies if kv is None else [*strategies, ("kv", kv.strategy, limits.kv.strategies)]


PresetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class PruneConfig(Section):
    """The whole file."""

    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    default_strategies: DefaultStrategies = DefaultStrategies()
    presets: dict[PresetName, PruningField] = Field(default_factory=dict)
    media: Media = Media()
    admission: Admission = Admission()
    kv: Kv = Kv()
    tenants: Tenants = Field(default_factory=dict)
    logging: Logging = Logging()
    playground: Playground = Playground()
    stts: Stts = Stts()
    vision_selector: VisionSelectorWeights = VisionSelectorWeights()
    weights: TrainedLayers = TrainedLayers()
    feature_cache: FeatureCacheSize = FeatureCacheSize()

    @model_validator(mode="after")
    def _usable(self) -> PruneConfig:
        self._check_default_strategies()
        self._check_defaults("defaults")
        for name, preset in self.presets.items():
            _check_budget(f"presets.{name}", preset, self)
        for tenant in named(self.tenants).values():
            self.for_tenant(tenant)._check_defaults(f"tenant {tenant.name}: defaults")
        return self

    def _check_default_strategies(self) -> None:
        chosen, limits = self.default_strategies, self.limits
        for names, allowed in (
            (chosen.names("image", "video"), limits.strategies),
            (chosen.names("kv"), limits.kv.strategies),
        ):
            if allowed is not None and (others := sorted(names - {*allowed})):
                raise ValueError(f"default_strategies: {others[0]!r} is not among limits: {', '.join(allowed)}")

    def visual_choices(self) -> dict[Modality, Choices]:
        """Strategies of visual budgets that name none, see `budget.fields.Choices`."""
        return {m: self.limits.choices(m, self.default_strategies.of(m)) for m in MODALITIES}

    def kv_choices(self) -> Choices:
        """The same for KV budgets."""
        return self.limits.kv.choices(self.default_strategies.of("kv"))

    def _check_defaults(self, where: str) -> None:
        """Refuse defaults that the limits forbid: every request that names no budget would be refused."""
        for label, name, allowed in _check_budget(where, self.defaults, self):
            if allowed is not None and name not in allowed:
                raise ValueError(f"{where}.{label}: strategy {name!r} is not among limits: {', '.join(allowed)}")

    @property
    def largest_window(self) -> int:
        """Largest `window` of KV eviction that any tenant may ask for."""
        limits = [self.limits, *(self.limits.overlaid(tenant.limits) for tenant in self.tenants.values())]
        return max(one.kv.max_window for one in limits)

    def for_tenant(self, tenant: Tenant) -> PruneConfig:
        """The configuration as it applies to one tenant.

        Raises:
            ValueError: its default preset does not exist, or its limits contradict the server's.
        """
        name = tenant.default_preset
        if name is not None and name not in self.presets:
            known = ", ".join(sorted(self.presets)) or "none are configured"
            raise ValueError(f"tenant {tenant.name}: unknown default_preset {name!r}; known: {known}")
        preset = self.presets[name] if name is not None else PruningField()
        defaults = self.defaults.model_copy(update={part: getattr(preset, part) for part in preset.model_fields_set})
        return self.model_copy(update={"defaults": defaults, "limits": self.limits.overlaid(tenant.limits)})


def load(path: str | os.PathLike[str] | None = None) -> PruneConfig:
    """Read the configuration from `path`, or from the file that `VLLM_PRUNE_CONFIG` names, or the defaults.

    Raises:
        ConfigError: unreadable file, YAML error, unknown key or wrong value, with its line.
    """
    source = path or os.environ.get(ENV)
    try:
        text = Path(source).read_text(encoding="utf-8") if source else ""
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = _with_environment(yaml.safe_load(text) or {})
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {source}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {error}") from None
    try:
        return PruneConfig.model_validate(_plain(raw))
    except ValidationError as error:
        first = first_problem(error)
        # A key that is refused may be a secret in the wrong place; the line is enough to find it.
        shown = first["loc"][:-2] if first["loc"][-1:] == ("[key]",) else first["loc"]
        where = ".".join(str(part) for part in shown)
        source = source or TENANTS_ENV
        raise ConfigError(f"{source}:{_line(tree, first['loc'])}: {where or 'file'}: {first['msg']}") from None


def _with_environment(raw: Any) -> Any:
    """The file's content with the tenants of the environment added to its section `tenants`."""
    try:
        more = from_environment()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not more or not isinstance(raw, dict):
        return raw
    tenants = raw.get("tenants") or {}
    if twice := set(tenants) & set(more):
        raise ConfigError(f"{TENANTS_ENV} repeats keys of the configuration file: {', '.join(sorted(twice))}")
    return {**raw, "tenants": {**tenants, **more}}


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


configuration = lru_cache(maxsize=1)(load)
"""The configuration of this process, from `VLLM_PRUNE_CONFIG`."""
