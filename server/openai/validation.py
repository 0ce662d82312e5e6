"""Refusals of request models, said in one line: the field that matters, and what is wrong with it.

Where a field may be of several types, pydantic lists what is wrong with the value for each of them, hundreds of lines
for a message or an input item. The client meant one of the types: the one whose fields fit the furthest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from vllm.exceptions import VLLMValidationError

LONGEST_MESSAGE = 500
_TAGS = ("type", "role")


async def answer_validation_error(req: Request, exc: RequestValidationError) -> JSONResponse:
    """Takes the place of vLLM's handler of the same parameters."""
    message, param = explain(exc.errors(), exc.body)
    error = {"message": message, "type": "BadRequestError", "param": param, "code": HTTPStatus.BAD_REQUEST.value}
    body: dict[str, Any] = {"error": error}
    if req.url.path.removeprefix(req.scope.get("root_path", "")).startswith("/v1/messages"):
        body["type"] = "error"
    return JSONResponse(body, status_code=HTTPStatus.BAD_REQUEST)


def explain(errors: Sequence[Any], body: object) -> tuple[str, str | None]:
    """What is wrong with a body, and the field to change.

    Args:
        errors: pydantic's, with locations that begin with "body", or texts.
        body: the document that was refused.
    """
    if texts := [error for error in errors if isinstance(error, str)]:
        # What a dependency of a route says, as that of the content type does.
        return _short(texts[0]), None
    for error in errors:
        cause = (error.get("ctx") or {}).get("error")
        if isinstance(cause, VLLMValidationError):
            return _short(str(cause)), cause.parameter
    if not errors:
        return "the request is not valid", None
    error = _most_telling(errors, body)
    fields, _ = _fields_and_type(error, body)
    param = ".".join(str(field) for field in fields) or None
    message = str(error["msg"]).removeprefix("Value error, ")
    return _short(f"{param}: {message}" if param else message), param


def _most_telling(errors: Sequence[Mapping[str, Any]], body: object) -> Mapping[str, Any]:
    """The first error of the type that fits the furthest."""
    by_type: dict[tuple[Any, ...], list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for error in errors:
        fields, chosen = _fields_and_type(error, body)
        by_type[chosen].append((len(fields), error))

    def fit(group: list[tuple[int, Mapping[str, Any]]]) -> tuple[bool, int, int]:
        wrong_tag = any(error["type"] == "literal_error" and error["loc"][-1] in _TAGS for _, error in group)
        return not wrong_tag, max(depth for depth, _ in group), -len(group)

    best = max(by_type.values(), key=fit)
    return max(best, key=lambda pair: pair[0])[1]


def _fields_and_type(error: Mapping[str, Any], body: object) -> tuple[list[Any], tuple[Any, ...]]:
    """The path of an error in the body, and its location up to the last type in it."""
    node, fields, last_type = body, [], 0
    location = tuple(error["loc"])[1:]
    for position, segment in enumerate(location):
        if _holds(node, segment):
            node = node[segment]  # type: ignore[index]
            fields.append(segment)
        elif error["type"] == "missing" and position == len(location) - 1:
            fields.append(segment)
        else:
            last_type = position + 1
    return fields, location[:last_type]


def _holds(node: object, segment: Any) -> bool:
    if isinstance(node, list):
        return isinstance(segment, int) and 0 <= segment < len(node)
    return isinstance(node, Mapping) and segment in node


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + "..."
