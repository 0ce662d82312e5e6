"""The id of a request: the client's `X-Request-Id` where it is harmless, else one of ours."""

from __future__ import annotations

import re
import uuid
from collections.abc import MutableSequence

HEADER = b"x-request-id"
# What fits into a log line, a header and a URL as it is. vLLM itself takes any value.
ACCEPTED = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")

RawHeaders = MutableSequence[tuple[bytes, bytes]]


def resolve_request_id(headers: RawHeaders) -> tuple[str, RawHeaders]:
    """Accept or replace the id that a request came with.

    Args:
        headers: raw ASGI headers, names in lower case.

    Returns:
        The request's id, and the headers without an id that was not accepted: vLLM makes its own ids from it.
    """
    values = [value for name, value in headers if name == HEADER]
    if len(values) == 1 and ACCEPTED.fullmatch(values[0]):
        return values[0].decode(), headers
    return uuid.uuid4().hex, [pair for pair in headers if pair[0] != HEADER]


def stamp(headers: RawHeaders, request_id: str) -> RawHeaders:
    """Headers of an answer with the id in place of any other, such as one of `--enable-request-id-headers`."""
    return [*(pair for pair in headers if pair[0].lower() != HEADER), (HEADER, request_id.encode())]
