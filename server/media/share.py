"""Whose share of the threads the request at hand uses."""

from __future__ import annotations

from vllm_prune.policy import TENANT
from vllm_prune.telemetry.request_record import RECORD

from .fair_executor import ShareKey


def share_key() -> ShareKey:
    """Tenant and id of the request at hand; both empty outside of a request."""
    tenant, record = TENANT.get(), RECORD.get()
    return ShareKey("" if tenant is None else str(tenant.name), "" if record is None else record.id)
