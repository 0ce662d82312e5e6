"""The tenant of the current request, and whether a renderer belongs to an HTTP server."""

from __future__ import annotations

from functools import wraps
from typing import Any

from ..request import RequestContext
from .signatures import holder

CONTEXT = "vllm_prune_context"
"""Key of a prepared prompt that holds the context of its request, for code that runs in another task."""


def owner_secret(context: RequestContext | None) -> str:
    """What separates the caches of a request's tenant from others'; empty where there are no tenants."""
    tenant = None if context is None else context.tenant
    return "" if tenant is None else tenant.cache_salt or f"tenant {tenant.name}"


def serves_http(renderer: Any) -> bool:
    """Whether a renderer answers HTTP requests, whose callers are not the operator."""
    return bool(getattr(renderer, "vllm_prune_serves_http", False))


def mark_serving_renderers() -> None:
    """Mark the renderers that serve HTTP: those that vLLM's `OnlineRenderer` is built on. Idempotent."""
    online = holder("OnlineRenderer.__init__")
    if getattr(online, "vllm_prune_marks", False):
        return
    original = online.__init__

    @wraps(original)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.renderer.vllm_prune_serves_http = True

    online.__init__ = initialise
    online.vllm_prune_marks = True
