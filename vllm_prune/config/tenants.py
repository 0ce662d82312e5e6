"""Section `tenants`: who may call, by the hash of an API key, and within which limits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Annotated, Any

import yaml
from pydantic import Field

from .admission import Count
from .limits import Limits
from .section import Section

ENV = "VLLM_PRUNE_TENANTS"
"""Environment variable with further entries of the section, as YAML or JSON text."""

KeyHash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
TenantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Rate(Section):
    """A token bucket of requests.

    Attributes:
        requests_per_second: requests per second in the long run.
        burst: requests that may come at once after a pause.
    """

    requests_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    burst: Count = 1


class Tenant(Section):
    """One tenant, by the hash of its API key. Keys whose entries are equal and have the same name belong to one.

    Attributes:
        name: for logs and for keys that share a tenant; from the key's hash when absent.
        limits: fields that replace those of the server's `limits`.
        default_preset: preset for what a request leaves open, before the server's defaults.
        rate: how many requests it may send in a time, as below.
        max_inflight_requests: requests being received or answered at once.
        cache_salt: separates this tenant's prefix cache from others'; from the name when absent.
    """

    name: TenantName | None = None
    limits: Limits = Limits()
    default_preset: str | None = None
    rate: Rate | None = None
    max_inflight_requests: Count | None = None
    cache_salt: Annotated[str, Field(min_length=1)] | None = None


Tenants = dict[KeyHash, Tenant]


SHORTEST_KEY = 20
KEYS_CONFLICT = "tenants are configured, which bring their own API keys: drop --api-key and VLLM_API_KEY"


def hash_key(key: str) -> str:
    """Form in which an API key is configured."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def named(tenants: Mapping[str, Tenant]) -> dict[str, Tenant]:
    """The tenants by key hash, each with a name.

    Raises:
        ValueError: two entries of one name that differ.
    """
    full = {
        key: tenant if tenant.name else tenant.model_copy(update={"name": f"key-{key.removeprefix('sha256:')[:12]}"})
        for key, tenant in tenants.items()
    }
    for tenant in full.values():
        if any(other.name == tenant.name and other != tenant for other in full.values()):
            raise ValueError(f"entries of the tenant {tenant.name!r} differ; keys of one tenant have equal entries")
    return full


def from_environment() -> dict[str, Any]:
    """Entries of the section in `VLLM_PRUNE_TENANTS`, as they were written.

    Raises:
        ValueError: not a mapping.
    """
    text = os.environ.get(ENV, "")
    try:
        entries = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{ENV} is neither YAML nor JSON: {error}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{ENV} is not a mapping from key hashes to tenants")
    return entries
