"""`InputProcessor.process_inputs`, wrapped: the one place that every request to an engine passes.

Our keys among a request's extra arguments are ours alone: where a server answers clients they are refused, and the
decision for the request at hand is attached instead. Prefix caches are separated by tenant.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import hmac
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace
from functools import partial, wraps
from typing import Any

from ..request import RequestContext, current, reject
from .request_owner import CONTEXT, owner_secret, serves_http
from .signatures import holder


def patch_input_processor() -> None:
    """Wrap the input processors of this process, those that exist already included. Idempotent."""
    processor = holder("InputProcessor.process_inputs")
    if getattr(processor, "vllm_prune_patched", False):
        return
    processor.__init__ = _with_context_in_threads(processor.__init__)
    processor.process_inputs = _guarded(processor.process_inputs)
    processor.vllm_prune_patched = True


def _with_context_in_threads(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)

        def process_inputs_async(*inputs: Any, **options: Any) -> Any:
            # vLLM hands raw prompts to a thread, which would not know whose request it works on.
            work = partial(copy_context().run, self.process_inputs, *inputs, **options)
            return asyncio.get_running_loop().run_in_executor(self.renderer._executor, work)

        self.process_inputs_async = process_inputs_async

    return initialise


def _guarded(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        # A stream starts its engine request in another task than the one that prepared the prompt.
        context = (prompt.get(CONTEXT) if isinstance(prompt, dict) else None) or current()
        params = _with_budget(params, context, serves_http(self.renderer))
        if context is not None:
            params = _with_reports(params, prompt, context)
        request = original(self, request_id, prompt, params, *args, **kwargs)
        if owner := owner_secret(context):
            request.cache_salt = salt_of(owner, request.cache_salt)
        if context is not None:
            context.add_engine_request(request.request_id)
        return request

    return process_inputs


def _with_budget(params: Any, context: RequestContext | None, serving: bool) -> Any:
    """The sampling parameters with the KV budget that was decided, on a copy: a caller may use its own again.

    Without a server the caller is the operator, whose own budget among the extra arguments is checked and kept.

    Raises:
        VLLMValidationError: a client has set what is the server's to set.
        BudgetError: the operator's budget is malformed.
    """
    from vllm.exceptions import VLLMValidationError

    from ..budget.kv import KEY, KvSpec

    if not hasattr(params, "extra_args"):
        return params
    extra = params.extra_args or {}
    if KEY in extra:
        if serving:
            reject("internal_key")
            raise VLLMValidationError(
                f"{KEY} is set by the server; ask for a budget with `pruning`", parameter="vllm_xargs"
            )
        KvSpec.of(extra)
        return params
    spec = None if context is None or context.decision is None else context.decision.kv
    if context is None or spec is None:
        return params
    return _changed(params, extra_args={**extra, KEY: replace(spec, ticket=context.id).wire()})


def _with_reports(params: Any, prompt: Any, context: RequestContext) -> Any:
    """Record what the processor has left in a prompt that did not pass the wrapper of `OnlineRenderer`."""
    from ..visual.frontend.processor import MAX_OUTPUT, REPORT

    if not isinstance(prompt, dict):
        return params
    context.record_items(prompt.pop(REPORT, ()))
    most = prompt.pop(MAX_OUTPUT, None)
    if most is None or not hasattr(params, "max_tokens"):
        return params
    return _changed(params, max_tokens=most if params.max_tokens is None else min(most, params.max_tokens))


def _changed(params: Any, **values: Any) -> Any:
    changed = copy.copy(params)
    for name, value in values.items():
        setattr(changed, name, value)
    return changed


def salt_of(tenant: str, client: str | None) -> str:
    """A salt in the alphabet that vLLM takes, from a tenant's secret and the client's own salt."""
    return hmac.new(tenant.encode(), (client or "").encode(), hashlib.sha256).hexdigest()
