"""What the server touches of vLLM's front end and of uvicorn: salts, item sizes, shutdown."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from .intake import TENANT


def salt_requests(engine_client: Any) -> None:
    """Separate the prefix caches of tenants.

    Every route hands its prompts to the one input processor of the engine client, whose result carries the salt
    that prefix hashes start from. The client's own salt is mixed in, so that it still separates, but cannot be
    another tenant's.
    """
    processor = engine_client.input_processor
    prepared, prepared_elsewhere = processor.process_inputs, processor.process_inputs_async

    @wraps(prepared)
    def process_inputs(*args: Any, **kwargs: Any) -> Any:
        return _salted(prepared(*args, **kwargs))

    async def process_inputs_async(*args: Any, **kwargs: Any) -> Any:
        return _salted(await prepared_elsewhere(*args, **kwargs))

    processor.process_inputs, processor.process_inputs_async = process_inputs, process_inputs_async


def _salted(request: Any) -> Any:
    if (tenant := TENANT.get()) is not None:
        request.cache_salt = salt_of(tenant.cache_salt or f"tenant {tenant.name}", request.cache_salt)
    return request


def salt_of(tenant: str, client: str | None) -> str:
    """A salt in the alphabet that vLLM takes, from a tenant's secret and what the client asked for."""
    return hmac.new(tenant.encode(), (client or "").encode(), hashlib.sha256).hexdigest()


def largest_items(engine_client: Any) -> Mapping[str, int]:
    """Most visual tokens of one item, by modality, before pruning; empty for a model without media."""
    processor = getattr(engine_client.renderer, "mm_processor", None)
    if processor is None:
        return {}
    counts = dict.fromkeys(processor.info.allowed_mm_limits, 1)
    found = processor.info.get_mm_max_tokens_per_item(engine_client.model_config.max_model_len, counts)
    return {modality: tokens for modality, tokens in (found or {}).items() if tokens}


def image_sizer(engine_client: Any) -> Callable[[int, int], int] | None:
    """Visual tokens of an image before pruning, from width and height; None for a model without an adapter."""
    processor = getattr(engine_client.renderer, "mm_processor", None)
    if processor is None or not getattr(processor, "vllm_prune_adapter", False):
        return None
    sizer: Callable[[int, int], int] = processor.image_tokens
    return sizer


def on_shutdown(engine_client: Any, drained: Callable[[Callable[[float | None], None], float | None], None]) -> None:
    """Put `drained(original, timeout)` in the place of the engine client's `shutdown`.

    vLLM calls it when a signal arrives, in a thread of its own, and again when the server has ended.
    """
    original = engine_client.shutdown

    @wraps(original)
    def shutdown(timeout: float | None = None) -> None:
        drained(original, timeout)

    engine_client.shutdown = shutdown


async def abort_all(engine_client: Any) -> None:
    """End every request that the engine has, with `finish_reason` "abort"."""
    await engine_client.pause_generation(mode="abort", clear_cache=False)


def bound_shutdown(http_server: Any, seconds: int) -> None:
    """Close connections that are still open so long after the last request; uvicorn would wait for them for ever."""
    http_server.config.timeout_graceful_shutdown = seconds
