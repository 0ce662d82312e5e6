"""Whose share of the threads the request at hand uses."""

from __future__ import annotations

from vllm_prune.request import current

from .fair_executor import ShareKey


def share_key() -> ShareKey:
    """Tenant and id of the request at hand; both empty outside of a request."""
    context = current()
    if context is None:
        return ShareKey()
    return ShareKey("" if context.tenant is None else str(context.tenant.name), context.id)
