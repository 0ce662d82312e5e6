"""JSON bodies: parsed as vLLM's routes parse them, so that a decision and the route read the same."""

from __future__ import annotations

import json
import re
from typing import Any

from .errors import Refusal, bad_request

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

MAX_DEPTH = 128
"""Nesting of objects and lists. Deeper ones exhaust the stack of whoever walks them later."""


def parse(body: bytes) -> Any:
    """The document in a body; of keys that are repeated the last one counts.

    Raises:
        Refusal: 400, the body is no JSON, or nested too deep.
    """
    try:
        document = json.loads(body)
        if _may_hold_surrogates(body):
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise bad_request("a string in the body holds half of a surrogate pair", None, "invalid_body") from None
    except json.JSONDecodeError as error:
        raise bad_request(f"the body is not JSON: {error}", None, "invalid_body") from None
    except UnicodeDecodeError as error:
        message = f"the body is not valid UTF-8 at byte {error.start}; encode it as UTF-8"
        raise bad_request(message, None, "invalid_body") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        # The only other one: Python refuses to read numbers of thousands of digits.
        raise bad_request("the body holds a number of too many digits", None, "invalid_body") from None
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _check_depth(document)
    return document


def _may_hold_surrogates(body: bytes) -> bool:
    # The searches for plain bytes are a hundred times as fast as the pattern, and most bodies are base64.
    escaped = b"\\u" in body and _ESCAPED_SURROGATE.search(body) is not None
    return escaped or b"\xed" in body or b"\0" in body[:4]


def _check_depth(document: Any) -> None:
    level = [document]
    for _ in range(MAX_DEPTH):
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for group in children for child in group if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> Refusal:
    return bad_request(f"the body is nested deeper than {MAX_DEPTH} levels", None, "invalid_body")


def dump(document: Any) -> bytes:
    """A body that parses to `document`."""
    return json.dumps(document, separators=(",", ":")).encode()
