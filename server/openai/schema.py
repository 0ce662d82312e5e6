"""The `pruning` field in the server's OpenAPI description, so that client generators and fuzzers know of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from vllm_prune.budget.fields import PruningField

REQUESTS = (
    "AnthropicCountTokensRequest",
    "AnthropicMessagesRequest",
    "BatchChatCompletionRequest",
    "ChatCompletionRequest",
    "CompletionRequest",
    "GenerateRequest",
    "ResponsesRequest",
    "TokenizeChatRequest",
    "TokenizeCompletionRequest",
)
_REFERENCE = "#/components/schemas/{model}"


def describe(app: FastAPI) -> None:
    """Add the field to the description that the app makes of itself."""
    original: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        description = original()
        schemas = description.get("components", {}).get("schemas", {})
        if PruningField.__name__ not in schemas:
            _add(schemas)
        return description

    app.openapi = openapi  # type: ignore[method-assign]


def _add(schemas: dict[str, Any]) -> None:
    description = PruningField.model_json_schema(ref_template=_REFERENCE)
    schemas.update(description.pop("$defs", {}))
    schemas[PruningField.__name__] = description
    field = {
        "anyOf": [{"$ref": _REFERENCE.format(model=PruningField.__name__)}, {"type": "string"}, {"type": "null"}],
        "default": None,
        "description": "Budgets of this request: an object, the name of a preset, or null for the server's default.",
    }
    for name in REQUESTS:
        if name in schemas:
            schemas[name].setdefault("properties", {})["pruning"] = field
