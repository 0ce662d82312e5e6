"""What `/v1/responses` takes and vLLM 0.32 stumbles over, with a 500 or a broken stream: made readable, or refused."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

OUTPUTS = ("function_call_output", "custom_tool_call_output")
NOT_NULL = ("background", "truncation")
"""Fields that a request may leave null and vLLM's response object may not."""


def make_readable(request: Any) -> tuple[str, str] | None:
    """Rewrite what tools returned in parts, such as a screenshot, and nulls; complain about what cannot be read.

    Args:
        request: vLLM's request model; it is changed in place.

    Returns:
        Complaint and field, or None.
    """
    for name in NOT_NULL:
        # Requests of other routes take fields of any name, without knowing them.
        field = type(request).model_fields.get(name)
        if field is not None and getattr(request, name) is None:
            setattr(request, name, field.default)
    items = getattr(request, "input", None)
    for number, item in enumerate(items if isinstance(items, list) else ()):
        kind = _value(item, "type")
        if kind in OUTPUTS:
            complaint = _tool_output(item, f"input.{number}.output")
        elif kind in (None, "message"):
            complaint = _message(item, f"input.{number}.content")
        else:
            complaint = None
        if complaint is not None:
            return complaint
    return None


def _tool_output(item: Any, field: str) -> tuple[str, str] | None:
    """The chat parser takes parts as dictionaries, and some of these arrive as models."""
    parts = _value(item, "output")
    if not isinstance(parts, list):
        return None
    plain = [part.model_dump(exclude_none=True) if isinstance(part, BaseModel) else part for part in parts]
    for number, part in enumerate(plain):
        if part.get("type") == "input_image" and not part.get("image_url"):
            return "an image without image_url; files cannot be named by file_id here", f"{field}.{number}"
        if part.get("type") not in ("input_text", "input_image"):
            return "only input_text and input_image are supported here", f"{field}.{number}"
    if isinstance(item, BaseModel):
        # The field's declared type has models; vLLM reads the attribute as it is.
        object.__setattr__(item, "output", plain)
    else:
        item["output"] = plain
    return None


def _message(item: Any, field: str) -> tuple[str, str] | None:
    content = _value(item, "content")
    if not isinstance(content, list):
        return None
    if not content:
        return "a message without content; leave it out", field
    if _value(content[0], "type") == "refusal":
        return "a refusal is not supported as input; send its text as output_text", f"{field}.0"
    return None


def _value(node: Any, name: str) -> Any:
    return node.get(name) if isinstance(node, dict) else getattr(node, name, None)
