"""Tables of the operator's settings, from the classes that read them."""

from __future__ import annotations

import inspect
from typing import Any

from vllm_prune.config.admission import Admission
from vllm_prune.config.default_strategies import DefaultStrategies
from vllm_prune.config.feature_cache import FeatureCacheSize
from vllm_prune.config.kv import Kv
from vllm_prune.config.limits import KvLimits, Limits
from vllm_prune.config.load import Defaults
from vllm_prune.config.logging import Logging
from vllm_prune.config.media import Media
from vllm_prune.config.playground import Playground
from vllm_prune.config.scorers import Stts, TrainedLayers, VisionSelectorWeights
from vllm_prune.config.tenants import Rate, Tenant

from .files import table
from .schema import attributes, default, kind

HEAD = ["key", "values", "default", "meaning"]

SECTIONS: dict[str, type[Any]] = {
    "defaults": Defaults,
    "limits": Limits,
    "limits.kv": KvLimits,
    "default_strategies": DefaultStrategies,
    "admission": Admission,
    "kv": Kv,
    "tenants": Tenant,
    "tenants.rate": Rate,
    "media": Media,
    "logging": Logging,
    "playground": Playground,
    "stts": Stts,
    "vision_selector": VisionSelectorWeights,
    "weights": TrainedLayers,
    "feature_cache": FeatureCacheSize,
}
"""Every section of the file that has keys of its own, by its place in the file."""


def sections() -> str:
    """One heading and one table per section."""
    return "\n\n".join(_section(name, model) for name, model in SECTIONS.items())


def _section(name: str, model: type[Any]) -> str:
    first = " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split())
    return f"### `{name}`\n\n{first}\n\n{table(HEAD, rows(model))}"


def rows(model: type[Any]) -> list[list[str]]:
    """One line per key.

    Raises:
        KeyError: a key that the docstring leaves out.
    """
    schema, texts = model.model_json_schema(), attributes(model)
    return [
        [f"`{name}`", kind(field, schema), default(name, field), texts[name]]
        for name, field in schema.get("properties", {}).items()
    ]
