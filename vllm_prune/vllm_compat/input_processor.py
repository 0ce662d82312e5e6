"""What the server touches of vLLM's front end and of uvicorn: salts, item sizes, shutdown."""

from __future__ import annotations

import hashlib
import hmac
from functools import wraps
from typing import Any

from ..request import current


def salt_requests(engine_client: Any) -> None:
    """Separate the prefix caches of tenants, and tie engine requests to the requests that they belong to.

    Every route hands its prompts to the one input processor of the engine client, whose result carries the salt
    that prefix hashes start from. The client's own salt is mixed in, so that it still separates, but cannot be
    another tenant's.
    """
    processor = engine_client.input_processor
    prepared, prepared_elsewhere = processor.process_inputs, processor.process_inputs_async

    @wraps(prepared)
    def process_inputs(*args: Any, **kwargs: Any) -> Any:
        return _bound(prepared(*args, **kwargs))

    async def process_inputs_async(*args: Any, **kwargs: Any) -> Any:
        return _bound(await prepared_elsewhere(*args, **kwargs))

    processor.process_inputs, processor.process_inputs_async = process_inputs, process_inputs_async


def _bound(request: Any) -> Any:
    context = current()
    if context is not None:
        context.add_engine_request(request.request_id)
        if (tenant := context.tenant) is not None:
            request.cache_salt = salt_of(tenant.cache_salt or f"tenant {tenant.name}", request.cache_salt)
    return request


def salt_of(tenant: str, client: str | None) -> str:
    """A salt in the alphabet that vLLM takes, from a tenant's secret and what the client asked for."""
    return hmac.new(tenant.encode(), (client or "").encode(), hashlib.sha256).hexdigest()
