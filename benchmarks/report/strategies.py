"""Tables of the strategies and of their options, from the strategies' classes."""

from __future__ import annotations

from typing import Any

from vllm_prune.catalogue import KV, VISUAL, Catalogue, markdown

from .files import table
from .schema import attributes, default, kind

HEAD = ["option", "values", "default", "meaning"]


def names_by_kind() -> str:
    """Every name, by what it is for."""
    visual = VISUAL.entries()
    kinds = {
        "images and videos": [entry["name"] for entry in visual if entry["modality"] == ["image", "video"]],
        "videos": [entry["name"] for entry in visual if entry["modality"] == ["video"]],
        "the KV cache": KV.names(),
    }
    return "\n".join(f"- for {title}: {', '.join(f'`{name}`' for name in names)}" for title, names in kinds.items())


def visual_table() -> str:
    """The visual strategies."""
    return markdown(VISUAL)


def kv_table() -> str:
    """The KV strategies."""
    return markdown(KV)


def visual_options() -> str:
    """One table for the visual strategies that take the same options."""
    return _options(VISUAL)


def kv_options() -> str:
    """One table for the KV strategies that take the same options."""
    return _options(KV)


def _options(catalogue: Catalogue[Any]) -> str:
    by_model: dict[type[Any], list[str]] = {}
    for name in catalogue.names():
        by_model.setdefault(catalogue.strategy_class(name).Options, []).append(f"`{name}`")
    return "\n\n".join(
        f"{', '.join(names)}:\n\n{table(HEAD, _rows(model.model_json_schema(), model))}"
        for model, names in by_model.items()
        if model.model_fields
    )


def _rows(schema: dict[str, Any], model: type[Any]) -> list[list[str]]:
    texts = attributes(model)
    return [
        [f"`{name}`", kind(field, schema), default(name, field), texts[name]]
        for name, field in schema["properties"].items()
    ]
