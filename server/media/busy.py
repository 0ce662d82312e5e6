"""Refusals of media that are worth a second try: no decoding process, or too many media before these."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import Response
from vllm.exceptions import GracefulHTTPError

from ..openai.errors import Refusal, overloaded, too_many

RETRY_SECONDS = 5


class Busy(GracefulHTTPError):
    """A refusal that is over after some seconds: HTTP 503 or 429 with `Retry-After`.

    Args:
        refusal: status, body and headers in OpenAI's form.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal), HTTPStatus(refusal.status))
        self.refusal = refusal


class DecoderUnavailable(Busy):
    """The decoding processes cannot be started. The server's log says why."""

    def __init__(self) -> None:
        message = "media cannot be decoded at the moment; try again later"
        super().__init__(overloaded("media_unavailable", message, RETRY_SECONDS))


class QueueOverflow(Busy):
    """As many media wait as may: 429 for a tenant, whose media they are; 503 on a server without tenants."""

    def __init__(self, tenant: str) -> None:
        message = "too many media wait to be fetched or decoded; retry after the time in Retry-After"
        refuse = too_many if tenant else overloaded
        super().__init__(refuse("media_queue", message, RETRY_SECONDS))


def add_handlers(app: FastAPI) -> None:
    """Answer `Busy` with its headers, which vLLM's own handler of such errors does not know."""

    async def answer(request: Request, error: Busy) -> Response:
        return error.refusal.response()

    app.add_exception_handler(Busy, answer)  # type: ignore[arg-type]
