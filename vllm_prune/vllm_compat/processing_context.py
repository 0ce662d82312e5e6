"""`InputProcessingContext.call_hf_processor`, wrapped: what a processor fails on is not shown to clients."""

from __future__ import annotations

import logging
from functools import wraps
from typing import Any

from vllm.exceptions import VLLMError, VLLMValidationError

from .signatures import holder

logger = logging.getLogger("vllm.vllm_prune")


class ProcessorError(VLLMValidationError):
    """The model's processor fails on the media of a request: HTTP 400, with the cause in the server's log."""

    def __init__(self) -> None:
        super().__init__(
            "the model's processor cannot use the media of this request; send pictures as PNG or JPEG and videos as "
            "MP4, of a usual size, and leave mm_processor_kwargs and media_io_kwargs out",
            parameter="messages",
        )

    def __str__(self) -> str:
        return str(self.args[0])


def patch_processing_context() -> None:
    """Replace vLLM's text, which prints the processor's arguments, arrays and all. Idempotent."""
    context = holder("InputProcessingContext.call_hf_processor")
    original = context.call_hf_processor
    if getattr(original, "vllm_prune_patched", False):
        return

    @wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        except VLLMError:
            raise
        except ValueError as error:
            logger.warning("a processor failed on media: %.500r", error.__cause__ or error)
            raise ProcessorError from error

    call.vllm_prune_patched = True  # type: ignore[attr-defined]
    context.call_hf_processor = call
