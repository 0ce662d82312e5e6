"""Whose request is at hand, and whether there is a server at all."""

from __future__ import annotations

import importlib
from functools import wraps
from typing import Any

from ..policy import SCOPE, TENANT


def current() -> Any:
    """SHIM until context-step1."""
    from types import SimpleNamespace

    scope = SCOPE.get()
    if scope is None:
        return None
    return SimpleNamespace(id=scope.ticket, decision=scope.decision, add_engine_request=lambda i: None)


def owner_secret() -> str:
    """What separates the caches of the tenant at hand from others'; empty where there are no tenants."""
    tenant = TENANT.get()
    return "" if tenant is None else tenant.cache_salt or f"tenant {tenant.name}"


def serves_http(renderer: Any) -> bool:
    """Whether a renderer answers HTTP requests, whose callers are not the operator."""
    return getattr(renderer, "vllm_prune_serves_http", False)


def mark_serving_renderers() -> None:
    """Remember which renderers serve HTTP: those that vLLM's `OnlineRenderer` is built on. Idempotent."""
    online = importlib.import_module("vllm.renderers.online_renderer").OnlineRenderer
    if getattr(online, "vllm_prune_marks", False):
        return
    original = online.__init__

    @wraps(original)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.renderer.vllm_prune_serves_http = True

    online.__init__ = initialise
    online.vllm_prune_marks = True
