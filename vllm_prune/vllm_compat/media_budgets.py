"""vLLM's limits on media, which hold beside those of the operator's section `media`.

From 0.33 on each request has two budgets: bytes that its media downloads bring, and bytes that decoding makes of them.
vLLM counts the second inside its media IO, with an object that holds a lock and cannot be sent to another process; in a
decoding process `DecodedCount` stands for it, and what it counted is charged to the request afterwards.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

MEBIBYTE = 1 << 20
BYTES_PER_PIXEL = 3
"""Of a decoded video frame."""


class RequestLimitExceeded(ValueError):
    """The media of one request are more than vLLM's environment allows."""


@dataclass(frozen=True)
class MediaLimits:
    """Limits that vLLM's environment sets, in bytes; None where there is none.

    Attributes:
        file: one downloaded file, `VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB`.
        downloads: all downloads of a request, `VLLM_MAX_MEDIA_REQUEST_DOWNLOAD_SIZE_MB` from vLLM 0.33 on.
        decoded: all decoded media of a request, `VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES` from vLLM 0.33 on.
    """

    file: int | None
    downloads: int | None
    decoded: int | None


def media_limits() -> MediaLimits:
    """The limits that vLLM's environment sets now."""
    from vllm import envs

    def limit(name: str, unit: int) -> int | None:
        value = getattr(envs, name, 0)
        return value * unit if value > 0 else None

    return MediaLimits(
        limit("VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", MEBIBYTE),
        limit("VLLM_MAX_MEDIA_REQUEST_DOWNLOAD_SIZE_MB", MEBIBYTE),
        limit("VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES", 1),
    )


class DecodedCount:
    """Counts decoded bytes in a decoding process, with the methods of vLLM's `MediaDecodedBudget`.

    Args:
        left: bytes that the request may still decode, None for no limit.
    """

    def __init__(self, left: int | None = None) -> None:
        self.left, self.used = left, 0

    def charge(self, decoded_bytes: int) -> None:
        """Count bytes. Raises `RequestLimitExceeded`."""
        self.used += decoded_bytes
        if self.left is not None and self.used > self.left:
            raise RequestLimitExceeded

    def reserve(self, max_bytes: int) -> int:
        """All that is asked for: the process has limits of its own, and what was decoded is counted by `settle`."""
        return max_bytes

    def settle(self, reserved: int, decoded_bytes: int) -> None:
        """Count what came of a reservation. Raises `RequestLimitExceeded`."""
        self.charge(decoded_bytes)

    def frames(self, width: int, height: int) -> int | None:
        """Video frames of a size that may still be decoded, None for no limit."""
        return None if self.left is None else (self.left - self.used) // (BYTES_PER_PIXEL * width * height)


def for_decoder(media_io: Any) -> tuple[Any, Any]:
    """A media IO for a decoding process, and the budget of the request that its work is charged to.

    Args:
        media_io: vLLM's; the frames of a video are charged by its `image_io`.

    Returns:
        The media IO as it is and None where there is no budget; otherwise a copy with a `DecodedCount`, and vLLM's
        `MediaDecodedBudget`.
    """
    image_io = getattr(media_io, "image_io", None)
    holder = media_io if image_io is None else image_io
    budget = getattr(holder, "decoded_budget", None)
    if budget is None:
        return media_io, None
    limit = media_limits().decoded
    counting = copy.copy(holder)
    counting.decoded_budget = DecodedCount(None if limit is None else max(0, limit - budget.used))
    if image_io is None:
        return counting, budget
    media_io = copy.copy(media_io)
    media_io.image_io = counting
    return media_io, budget


def count_of(media_io: Any) -> DecodedCount:
    """The count in a media IO that `for_decoder` returned; one without a limit where there is none."""
    count = getattr(getattr(media_io, "image_io", media_io), "decoded_budget", None)
    return count if isinstance(count, DecodedCount) else DecodedCount()


def charge(budget: Any, size: int) -> None:
    """Charge bytes to a budget of a request: vLLM's `MediaDecodedBudget`, `MediaRequestDownloadBudget`, or None.

    Raises:
        RequestLimitExceeded: they are too many.
    """
    if budget is None:
        return
    try:
        budget.charge(size)
    except ValueError:
        raise RequestLimitExceeded from None
