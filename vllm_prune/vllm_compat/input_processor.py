"""What the server touches of vLLM's front end and of uvicorn: salts, item sizes, shutdown."""

from __future__ import annotations

import copy
import hashlib
import hmac
from dataclasses import replace
from functools import wraps
from typing import Any

from vllm.exceptions import VLLMValidationError

from ..budget.kv import KEY
from ..request import RequestContext, current


def salt_requests(engine_client: Any) -> None:
    """Separate the prefix caches of tenants, and tie engine requests to the requests that they belong to.

    Every route hands its prompts to the one input processor of the engine client, whose result carries the salt
    that prefix hashes start from. The client's own salt is mixed in, so that it still separates, but cannot be
    another tenant's.
    """
    processor = engine_client.input_processor
    prepared, prepared_elsewhere = processor.process_inputs, processor.process_inputs_async

    @wraps(prepared)
    def process_inputs(request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        return _bound(prepared(request_id, prompt, attach_kv_budget(current(), params), *args, **kwargs))

    async def process_inputs_async(request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        params = attach_kv_budget(current(), params)
        return _bound(await prepared_elsewhere(request_id, prompt, params, *args, **kwargs))

    processor.process_inputs, processor.process_inputs_async = process_inputs, process_inputs_async


def attach_kv_budget(context: RequestContext | None, params: Any) -> Any:
    """Sampling parameters with the KV budget of the request, on a copy: a caller may use its own again.

    Raises:
        VLLMValidationError: a client has set what is the server's to set.
    """
    if not hasattr(params, "extra_args"):
        return params
    extra = params.extra_args or {}
    if KEY in extra:
        raise VLLMValidationError(f"{KEY} is set by the server", parameter="vllm_xargs")
    spec = context.decision.kv if context is not None and context.decision is not None else None
    if context is None or spec is None:
        return params
    budgeted = copy.copy(params)
    budgeted.extra_args = {**extra, KEY: replace(spec, ticket=context.id).wire()}
    return budgeted


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
