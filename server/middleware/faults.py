"""Third step: turns faults that the content of a request caused, in our steps or in vLLM's front end, into 400s.

vLLM answers 500, with the text of a Python error, for values that it does not check. When that happens before a
request has reached a healthy engine, its content was the cause; the server's log keeps the traceback.
"""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.logger import init_logger

from vllm_prune.request import RequestContext, current

from ..openai.errors import Refusal, bad_request
from .paths import path_of

logger = init_logger("vllm.vllm_prune")

UNREADABLE = "the request could not be prepared: a field has a type or a value that is not supported"
INTERNAL = re.compile(
    r"object has no attribute|validation errors? for |errors\.pydantic\.dev|NoneType|not subscriptable|not iterable"
    r"|positional argument|keyword argument|Traceback|TextEncodeInput|object at 0x|codec can't|not supported between"
)
"""In error messages: words of Python's and of libraries', not of an API's."""
_PYDANTIC = re.compile(r"\n  (\w[^\n]*?) \[type=")
_CAUSED_BY_CONTENT = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Faults:
    """ASGI middleware.

    Args:
        app: the next step.
        state: the server's `ServerState`.
    """

    def __init__(self, app: ASGIApp, state: Any) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        context = current()
        assert context is not None
        answer = _Errors(self, context, path_of(scope), send)
        try:
            await self.app(scope, receive, answer.send)
        except _CAUSED_BY_CONTENT as error:
            if answer.started or not self.is_content(context):
                raise
            logger.exception("request %s could not be prepared", context.request_id)
            await _refusal(str(error)).response(path_of(scope))(scope, receive, send)

    def is_content(self, context: RequestContext) -> bool:
        """Whether the content of a request must be the cause of a fault."""
        lifecycle = self.state.lifecycle
        return not (context.engine_requests or lifecycle.dead or lifecycle.draining)


def _refusal(text: str) -> Refusal:
    if (rule := _PYDANTIC.search(text)) is not None:
        text = rule.group(1)
    readable = text and len(text) < 300 and "\n" not in text and not INTERNAL.search(text) and " " in text
    return bad_request(f"{UNREADABLE} ({text})" if readable else UNREADABLE, None, "invalid_body")


class _Errors:
    """The `send` of one answer: passes all on but errors, which it holds back until they are complete."""

    def __init__(self, faults: Faults, context: RequestContext, path: str, send: Send) -> None:
        self.faults, self.context, self.path, self._send = faults, context, path, send
        self.started = False
        self._held: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        """Take a message of the application's."""
        if message["type"] == "http.response.start":
            kind = next((value for name, value in message.get("headers", ()) if name.lower() == b"content-type"), b"")
            if message["status"] in (400, 500) and kind.startswith(b"application/json"):
                self._held = message
                return
        elif self._held is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._finish(self._held)
            return
        self.started = True
        await self._send(message)

    async def _finish(self, start: Message) -> None:
        self.started, self._held = True, None
        error = json.loads(self._body).get("error")
        text = str(error.get("message", "")) if isinstance(error, dict) else ""
        failed = start["status"] == 500 and self.faults.is_content(self.context)
        if failed or INTERNAL.search(text):
            # The text may quote the request.
            logger.warning("request %s was answered with %d by vLLM", self.context.request_id, start["status"])
            logger.debug("request %s: %s", self.context.request_id, text)
        if failed or (start["status"] == 400 and INTERNAL.search(text)):
            response = _refusal(text).response(self.path)
            start = {**start, "status": 400, "headers": response.raw_headers}
            self._body = bytes(response.body)
        await self._send(start)
        await self._send({"type": "http.response.body", "body": self._body, "more_body": False})
