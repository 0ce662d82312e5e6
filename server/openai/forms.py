"""Forms, as the speech routes take them."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope

from vllm_prune.policy import XARG

from .errors import bad_request


async def fields_of(scope: Scope, receive: Receive) -> dict[str, Any]:
    """The text fields of a form; `pruning` is JSON text or a preset's name there, as in `vllm_xargs`.

    Raises:
        Refusal: 400, no form.
    """
    try:
        async with Request(scope, receive).form() as form:
            fields: dict[str, Any] = {name: value for name, value in form.items() if not isinstance(value, UploadFile)}
    except HTTPException:
        raise bad_request("the body is not a form", None, "invalid_body") from None
    fields["stream"] = fields.get("stream") == "true"
    if XARG in fields:
        fields["vllm_xargs"] = {XARG: fields.pop(XARG)}
    return fields
