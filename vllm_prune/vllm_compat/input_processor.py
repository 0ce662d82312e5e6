"""What the server touches of vLLM's front end and of uvicorn: salts, item sizes, shutdown."""

from __future__ import annotations

import hashlib
import hmac
from functools import wraps
from typing import Any

from ..policy import TENANT


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
