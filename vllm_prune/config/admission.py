"""Section `admission`: how much may be in flight at once, and how large one request may be."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .section import Section

Count = Annotated[int, Field(strict=True, ge=1)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class Admission(Section):
    """Caps of one API process; a cap that is absent does not bind.

    Attributes:
        max_inflight_requests: requests being answered.
        max_inflight_visual_tokens: kept visual tokens of the requests being answered.
        max_inflight_kv_rows: rows of KV cache that they will hold: prompt and output, within their KV budgets.
        max_waiting: requests that may wait for room; the next one is refused with 503.
        max_wait_seconds: how long one waits before it is refused with 503.
        retry_after_seconds: value of `Retry-After` in a 503.
        max_body_bytes: body of one request.
        max_total_body_bytes: bodies of all requests that are being received or answered.
        max_body_seconds: how long a client may take to send its body.
    """

    max_inflight_requests: Count | None = None
    max_inflight_visual_tokens: Count | None = None
    max_inflight_kv_rows: Count | None = None
    max_waiting: Annotated[int, Field(strict=True, ge=0)] = 128
    max_wait_seconds: Seconds = 10.0
    retry_after_seconds: Count = 1
    max_body_bytes: Count = 128 << 20
    max_total_body_bytes: Count = 1 << 30
    max_body_seconds: Seconds = 120.0

    @property
    def weighs(self) -> bool:
        """Whether the size of a request matters."""
        return self.max_inflight_visual_tokens is not None or self.max_inflight_kv_rows is not None
