"""Inputs of `/v1/responses` on which vLLM 0.32 fails with a 500 or a broken stream: normalised, or refused."""

from __future__ import annotations

from typing import Any

from .errors import Refusal, bad_request

OUTPUTS = ("function_call_output", "custom_tool_call_output")
NOT_NULL = ("background", "truncation")
"""Fields that a request may leave null and vLLM's response object may not."""


def normalise_inputs(document: dict[str, Any]) -> bool:
    """Take out what vLLM would break on and does not need; returns whether there was any.

    Raises:
        Refusal: 400, an input item that cannot be read.
    """
    nulls = [name for name in NOT_NULL if name in document and document[name] is None]
    for name in nulls:
        del document[name]
    rewritten = bool(nulls)
    items = document.get("input")
    for number, item in enumerate(items if isinstance(items, list) else ()):
        if not isinstance(item, dict):
            continue
        kind = item.get("type")
        if kind in OUTPUTS:
            rewritten |= _plain_tool_output(item, f"input.{number}.output")
        elif kind in (None, "message"):
            _check_message(item.get("content"), f"input.{number}.content")
    return rewritten


def _plain_tool_output(item: dict[str, Any], field: str) -> bool:
    """Check parts that a tool returned, such as a screenshot.

    With an id and a status vLLM reads the item as a model whose parts its chat parser does not know; it uses neither.
    """
    parts = item.get("output")
    if not isinstance(parts, list):
        return False
    _check_tool_parts(parts, field)
    present = [name for name in ("id", "status") if name in item]
    for name in present:
        del item[name]
    return bool(present)


def _check_tool_parts(parts: list[Any], field: str) -> None:
    for number, part in enumerate(parts):
        if not isinstance(part, dict):
            continue
        if part.get("type") == "input_image" and not part.get("image_url"):
            raise _unreadable("an image without image_url; files cannot be named by file_id here", f"{field}.{number}")
        if part.get("type") not in ("input_text", "input_image"):
            raise _unreadable("only input_text and input_image are supported here", f"{field}.{number}")


def _check_message(content: Any, field: str) -> None:
    if not isinstance(content, list):
        return
    if not content:
        raise _unreadable("a message without content; leave it out", field)
    if isinstance(content[0], dict) and content[0].get("type") == "refusal":
        raise _unreadable("a refusal is not supported as input; send its text as output_text", f"{field}.0")


def _unreadable(message: str, field: str) -> Refusal:
    return bad_request(message, field, "invalid_body")
